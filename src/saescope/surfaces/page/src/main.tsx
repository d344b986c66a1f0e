import { render } from "preact";
import { useEffect, useState } from "preact/hooks";

import { get, rememberKey } from "./api";
import type { Capabilities } from "./api";
import { Steer } from "./steer";
import "./page.css";

function Page() {
  const [server, setServer] = useState<Capabilities | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const load = () => {
    get<Capabilities>("/v1/capabilities").then(
      (answer) => {
        setServer(answer);
        setProblem(null);
      },
      (error: Error) => setProblem(error.message),
    );
  };
  useEffect(load, []);
  return (
    <>
      <a class="skip" href="#content">
        Skip to the content
      </a>
      <header>
        <h1>saescope</h1>
        <p>{server ? `${server.model}, ${server.n_layers} layers` : ""}</p>
      </header>
      <main id="content">
        {problem !== null && <Problem text={problem} onKey={load} />}
        {server !== null && <Steer server={server} />}
      </main>
    </>
  );
}

function Problem({ text, onKey }: { text: string; onKey: () => void }) {
  const asksForKey = text.includes("key");
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    rememberKey(String(new FormData(form).get("key") ?? ""));
    onKey();
  };
  return (
    <section class="problem" role="alert">
      <p>{text}</p>
      {asksForKey && (
        <form onSubmit={submit}>
          <label>
            Key <input name="key" type="password" autocomplete="off" />
          </label>
          <button>Use it</button>
        </form>
      )}
    </section>
  );
}

const root = document.getElementById("app");
if (root) render(<Page />, root);
