/** The whole state of a view is in the address: a link shows what its sender saw. */

import type { Edit } from "./api";

export interface SteerState {
  prompt: string;
  chat: boolean;
  thinking: boolean;
  edits: Edit[];
  use: string[];
  enabled: boolean;
  tokens: number;
}

const SEPARATOR = "~";

/** `2/412~scale~-3~relu~all` */
export function writeEdit(edit: Edit): string {
  const { feature, op, strength, gate, scope } = edit;
  return [feature, op, strength ?? "", gate, scope].join(SEPARATOR);
}

export function readEdit(text: string): Edit | null {
  const [feature, op, strength, gate, scope] = text.split(SEPARATOR);
  if (!feature || !/^\d+\/\d+$/.test(feature)) return null;
  const number = strength ? Number(strength) : null;
  return {
    feature,
    op: (op || "scale") as Edit["op"],
    strength: number !== null && Number.isFinite(number) ? number : null,
    gate: (gate || "relu") as Edit["gate"],
    scope: (scope || "all") as Edit["scope"],
  };
}

export function readState(search: string, fallback: SteerState): SteerState {
  const query = new URLSearchParams(search);
  if (!query.has("text")) return fallback;
  return {
    prompt: query.get("text") ?? "",
    chat: query.get("chat") === "1",
    thinking: query.get("thinking") === "1",
    edits: query.getAll("edit").flatMap((text) => readEdit(text) ?? []),
    use: query.getAll("use"),
    enabled: query.get("off") !== "1",
    tokens: Math.min(512, Math.max(1, Number(query.get("tokens")) || fallback.tokens)),
  };
}

export function writeState(state: SteerState): string {
  const query = new URLSearchParams({ text: state.prompt });
  if (state.chat) query.set("chat", "1");
  if (state.thinking) query.set("thinking", "1");
  for (const edit of state.edits) query.append("edit", writeEdit(edit));
  for (const name of state.use) query.append("use", name);
  if (!state.enabled) query.set("off", "1");
  query.set("tokens", String(state.tokens));
  return `?${query}`;
}
