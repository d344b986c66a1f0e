/** Edits of one request: as sliders, or as the JSON that the API takes. */

import { useState } from "preact/hooks";

import type { SteerState } from "./address";
import type { Capabilities, Edit, EditSet, Op } from "./api";

const UNITS: Record<Op, string> = {
  add: "decoder columns",
  scale: "times its contribution",
  clamp: "activation",
  readout_clamp: "read-out",
  project: "share removed",
};
const RANGES: Record<Op, [number, number, number]> = {
  add: [-20, 20, 0.5],
  scale: [-10, 10, 0.25],
  clamp: [0, 20, 0.5],
  readout_clamp: [-20, 20, 0.5],
  project: [0, 1, 0.05],
};

interface Props {
  server: Capabilities;
  sets: EditSet[];
  state: SteerState;
  /** The field that the server refused, such as `steering.edits[0]`. */
  param: string | null;
  onChange: (change: Partial<SteerState>) => void;
}

export function EditForm({ server, sets, state, param, onChange }: Props) {
  const [asJson, setAsJson] = useState(false);
  const replace = (index: number, change: Partial<Edit>) =>
    onChange({ edits: state.edits.map((edit, n) => (n === index ? { ...edit, ...change } : edit)) });
  const layer = server.saes[0]?.layer ?? 0;
  const added: Edit = { feature: `${layer}/0`, op: "scale", strength: -1, gate: "relu", scope: "all" };
  return (
    <section aria-label="Edits">
      <div class="row">
        <h2>Edits</h2>
        <button aria-pressed={asJson} onClick={() => setAsJson(!asJson)}>
          JSON
        </button>
        <button onClick={() => onChange({ edits: [...state.edits, added] })}>Add an edit</button>
      </div>
      {asJson ? (
        <Json state={state} onChange={onChange} />
      ) : (
        state.edits.map((edit, n) => (
          <Row
            key={n}
            server={server}
            edit={edit}
            refused={param?.startsWith(`steering.edits[${n}]`) ?? false}
            onChange={(change) => replace(n, change)}
            onRemove={() => onChange({ edits: state.edits.filter((_, other) => other !== n) })}
          />
        ))
      )}
      {sets.length > 0 && (
        <fieldset>
          <legend>Stored edit sets</legend>
          {sets.map(({ name }) => (
            <label key={name}>
              <input
                type="checkbox"
                checked={state.use.includes(name)}
                onChange={(event) => {
                  const others = state.use.filter((used) => used !== name);
                  onChange({ use: event.currentTarget.checked ? [...others, name] : others });
                }}
              />
              {name}
            </label>
          ))}
        </fieldset>
      )}
    </section>
  );
}

interface RowProps {
  server: Capabilities;
  edit: Edit;
  refused: boolean;
  onChange: (change: Partial<Edit>) => void;
  onRemove: () => void;
}

function Row({ server, edit, refused, onChange, onRemove }: RowProps) {
  const [low, high, step] = RANGES[edit.op];
  const strength = edit.strength ?? server.default_strengths[edit.op] ?? 0;
  return (
    <div class="edit row">
      <label>
        Feature
        <input
          value={edit.feature}
          size={9}
          aria-invalid={refused}
          onChange={(event) => onChange({ feature: event.currentTarget.value.trim() })}
        />
      </label>
      <Select label="Op" value={edit.op} options={server.ops} onChange={(op) => onChange({ op, strength: null })} />
      <label class="wide">
        Strength, {UNITS[edit.op]}
        <span class="slider">
          <input
            type="range"
            min={low}
            max={high}
            step={step}
            value={strength}
            onInput={(event) => onChange({ strength: Number(event.currentTarget.value) })}
          />
          <output>{strength}</output>
        </span>
      </label>
      <Select label="Gate" value={edit.gate} options={server.gates} onChange={(gate) => onChange({ gate })} />
      <Select label="Positions" value={edit.scope} options={server.scopes} onChange={(scope) => onChange({ scope })} />
      <button onClick={onRemove} aria-label={`Remove the edit of ${edit.feature}`}>
        Remove
      </button>
    </div>
  );
}

interface SelectProps<T extends string> {
  label: string;
  value: T;
  options: T[];
  onChange: (value: T) => void;
}

function Select<T extends string>({ label, value, options, onChange }: SelectProps<T>) {
  return (
    <label>
      {label}
      <select value={value} onChange={(event) => onChange(event.currentTarget.value as T)}>
        {options.map((option) => (
          <option key={option}>{option}</option>
        ))}
      </select>
    </label>
  );
}

function Json({ state, onChange }: Pick<Props, "state" | "onChange">) {
  const [problem, setProblem] = useState("");
  const read = (text: string) => {
    try {
      const edits: unknown = JSON.parse(text);
      if (!Array.isArray(edits)) throw new Error("a list of edits is needed");
      onChange({ edits: edits as Edit[] });
      setProblem("");
    } catch (error) {
      setProblem((error as Error).message);
    }
  };
  return (
    <>
      <label for="json">The field steering.edits</label>
      <textarea
        id="json"
        rows={8}
        spellcheck={false}
        aria-invalid={problem !== ""}
        onChange={(event) => read(event.currentTarget.value)}
      >
        {JSON.stringify(state.edits, null, 2)}
      </textarea>
      {problem && <p class="problem">{problem}</p>}
    </>
  );
}
