/** What the page does, as a command or a program: every picture has its command. */

import type { SteerState } from "./address";
import type { Edit } from "./api";

export function requestOf(model: string, state: SteerState): Record<string, unknown> {
  const { use, edits, enabled } = state;
  const steering = { version: 1, ...(use.length ? { use } : {}), edits, enabled };
  const given = state.chat
    ? { messages: [{ role: "user", content: state.prompt }], ...thinkingOf(state) }
    : { prompt: state.prompt };
  return { model, ...given, max_tokens: state.tokens, temperature: 0, steering };
}

function thinkingOf(state: SteerState): { chat_template_kwargs: { enable_thinking: boolean } } {
  return { chat_template_kwargs: { enable_thinking: state.thinking } };
}

export function pathOf(state: SteerState): string {
  return state.chat ? "/v1/chat/completions" : "/v1/completions";
}

export function asCurl(model: string, state: SteerState): string {
  const body = JSON.stringify(requestOf(model, state));
  const url = `${location.origin}${pathOf(state)}`;
  return `curl -s ${url} -H 'Content-Type: application/json' -d ${quoted(body)}`;
}

export function asPython(model: string, state: SteerState): string {
  const { steering } = requestOf(model, state) as { steering: object };
  const extra = state.chat ? { ...thinkingOf(state), steering } : { steering };
  const given = state.chat
    ? `messages=[{"role": "user", "content": ${JSON.stringify(state.prompt)}}]`
    : `prompt=${JSON.stringify(state.prompt)}`;
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${location.origin}/v1", api_key="none")`,
    `reply = client.${state.chat ? "chat.completions" : "completions"}.create(`,
    `    model=${JSON.stringify(model)},`,
    `    ${given},`,
    `    max_tokens=${state.tokens},`,
    "    temperature=0,",
    `    extra_body=${pythonLiteral(extra)},`,
    ")",
    `print(reply.choices[0].${state.chat ? "message.content" : "text"})`,
  ].join("\n");
}

export function asCommand(state: SteerState): string {
  const edits = state.edits.map((edit) => `--edit ${quoted(editText(edit))}`);
  const chat = state.chat ? ["--chat", state.thinking ? "--thinking" : "--no-thinking"] : [];
  const tokens = `--max-new-tokens ${state.tokens}`;
  return ["saescope steer", quoted(state.prompt), ...chat, ...edits, tokens].join(" ");
}

export function editText({ feature, op, strength, gate, scope }: Edit): string {
  return [feature, op, strength ?? "", gate, scope].filter((part) => part !== "").join(" ");
}

function quoted(text: string): string {
  return /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function pythonLiteral(value: unknown): string {
  return JSON.stringify(value)
    .replaceAll(":true", ":True")
    .replaceAll(":false", ":False")
    .replaceAll(":null", ":None");
}
