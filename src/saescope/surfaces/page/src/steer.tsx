/** Text without and with edits, side by side, while it is generated. */

import { useEffect, useRef, useState } from "preact/hooks";

import { readState, writeState } from "./address";
import type { SteerState } from "./address";
import { Refusal, get, stream } from "./api";
import type { Capabilities, EditSet, Receipt } from "./api";
import { asCommand, asCurl, asPython, pathOf, requestOf } from "./copy";
import { EditForm } from "./edit-form";
import { marked } from "./words";

const DELAY = 350; // ms after the last change, before the texts are generated again

const FIRST: SteerState = {
  prompt: "Where are the lighthouses?",
  chat: true,
  thinking: false,
  edits: [{ feature: "2/412", op: "scale", strength: -3, gate: "relu", scope: "all" }],
  use: [],
  enabled: true,
  tokens: 48,
};

interface Texts {
  base: string;
  steered: string;
  receipt: Receipt | null;
  /** The state that the whole texts belong to; while others are written, it is another one. */
  of: string;
  problem: { text: string; param: string | null } | null;
}

const EMPTY: Texts = { base: "", steered: "", receipt: null, of: "", problem: null };

export function Steer({ server }: { server: Capabilities }) {
  const [state, setState] = useState(() => readState(location.search, { ...FIRST, chat: server.chat }));
  const texts = useTexts(server.model, state);
  const sets = useEditSets();
  const update = (change: Partial<SteerState>) => setState({ ...state, ...change });

  useEffect(() => history.replaceState(null, "", writeState(state)), [state]);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const typing = (event.target as HTMLElement).matches("input, textarea, select");
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "s") setState((old) => ({ ...old, enabled: !old.enabled }));
      if (event.key === "/") {
        event.preventDefault();
        document.querySelector<HTMLElement>("#prompt")?.focus();
      }
      if (event.key === "c") void navigator.clipboard.writeText(location.href);
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);

  return (
    <>
      <section aria-label="What to continue">
        <label for="prompt">Prompt</label>
        <textarea
          id="prompt"
          rows={2}
          value={state.prompt}
          onInput={(event) => update({ prompt: event.currentTarget.value })}
        />
        <div class="row">
          {server.chat && (
            <label>
              <input
                type="checkbox"
                checked={state.chat}
                onChange={(event) => update({ chat: event.currentTarget.checked })}
              />
              Through the chat template
            </label>
          )}
          {state.chat && (
            <label>
              <input
                type="checkbox"
                checked={state.thinking}
                onChange={(event) => update({ thinking: event.currentTarget.checked })}
              />
              Let it think
            </label>
          )}
          <label>
            Tokens
            <input
              type="number"
              min={1}
              max={512}
              value={state.tokens}
              onChange={(event) => update({ tokens: Number(event.currentTarget.value) || 1 })}
            />
          </label>
          <label class="switch">
            <input
              type="checkbox"
              role="switch"
              checked={state.enabled}
              onChange={(event) => update({ enabled: event.currentTarget.checked })}
            />
            Steering
          </label>
        </div>
      </section>
      <EditForm
        server={server}
        sets={sets}
        state={state}
        param={texts.problem?.param ?? null}
        onChange={update}
      />
      {texts.problem && (
        <p class="problem" role="alert">
          {texts.problem.text}
        </p>
      )}
      <Columns state={state} texts={texts} />
      <Copies model={server.model} state={state} />
    </>
  );
}

function useEditSets(): EditSet[] {
  const [sets, setSets] = useState<EditSet[]>([]);
  useEffect(() => {
    get<EditSet[]>("/v1/steering").then(setSets, () => setSets([]));
  }, []);
  return sets;
}

/** Generate both texts at once, so that the server runs them in one batch. */
function useTexts(model: string, state: SteerState): Texts & { running: boolean } {
  const [texts, setTexts] = useState(EMPTY);
  const key = JSON.stringify([model, state]);
  const latest = useRef(0);
  useEffect(() => {
    const run = ++latest.current;
    const stopping = new AbortController();
    const show = (change: Partial<Texts>) => {
      if (run === latest.current) setTexts((old) => ({ ...old, ...change }));
    };
    const generate = async () => {
      if (!state.prompt.trim()) {
        show({ ...EMPTY, of: key });
        return;
      }
      show({ problem: null, receipt: null });
      const body = { ...requestOf(model, state), stream: true };
      const base = { ...body, steering: undefined };
      const path = pathOf(state);
      try {
        const [, steered] = await Promise.all([
          stream(path, base, stopping.signal, (text) => show({ base: text })),
          stream(path, body, stopping.signal, (text) => show({ steered: text })),
        ]);
        show({ receipt: steered.receipt, of: key });
      } catch (error) {
        if (stopping.signal.aborted) return;
        const param = error instanceof Refusal ? error.param : null;
        show({ problem: { text: (error as Error).message, param }, of: key, steered: "" });
      }
    };
    const timer = setTimeout(() => void generate(), DELAY);
    return () => {
      clearTimeout(timer);
      stopping.abort();
    };
  }, [key]);
  return { ...texts, running: texts.of !== key };
}

function Columns({ state, texts }: { state: SteerState; texts: Texts & { running: boolean } }) {
  const shown = marked(texts.steered, texts.base);
  return (
    <section class="columns" aria-label="Texts" aria-busy={texts.running}>
      <article>
        <h2>Without edits</h2>
        <p class="text" data-testid="base">
          {texts.base}
        </p>
      </article>
      <article>
        <h2>{state.enabled ? "With edits" : "Steering is off"}</h2>
        <p class="text" data-testid="steered">
          {shown.map((word) => (word.differs ? <mark>{word.text}</mark> : word.text))}
        </p>
        <Measured state={state} texts={texts} />
      </article>
    </section>
  );
}

function Measured({ state, texts }: { state: SteerState; texts: Texts }) {
  if (!state.enabled) return <p class="note">The same request without edits: the same text.</p>;
  const measured = texts.receipt?.measured;
  if (!measured) return null;
  const fired = Object.values(measured.fired).reduce((sum, n) => sum + n, 0);
  const changed = `changed ${measured.changed} of ${measured.positions} positions`;
  const reason = fired === 0 ? "no edited feature fired" : "rounding lost what was added";
  return <p class="note">{measured.applied ? `The edits ${changed}.` : `Nothing changed: ${reason}.`}</p>;
}

function Copies({ model, state }: { model: string; state: SteerState }) {
  const [copied, setCopied] = useState("");
  const copy = async (name: string, text: string) => {
    await navigator.clipboard.writeText(text);
    setCopied(`${name} is on the clipboard.`);
  };
  return (
    <section class="row" aria-label="Copy">
      <button onClick={() => void copy("The link", location.href)}>Copy link</button>
      <button onClick={() => void copy("curl", asCurl(model, state))}>as curl</button>
      <button onClick={() => void copy("Python", asPython(model, state))}>as Python</button>
      <button onClick={() => void copy("The command", asCommand(state))}>as command</button>
      <output>{copied}</output>
    </section>
  );
}
