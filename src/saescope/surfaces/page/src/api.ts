/** Requests to the server that this page came from, and to no other. */

export type Op = "add" | "scale" | "clamp" | "readout_clamp" | "project";

export interface Edit {
  feature: string;
  op: Op;
  strength: number | null;
  gate: "relu" | "topk";
  scope: "all" | "prefill" | "decode" | "last";
}

export interface Capabilities {
  version: string;
  model: string;
  n_layers: number;
  chat: boolean;
  saes: { layer: number; d_sae: number; k: number | null }[];
  ops: Op[];
  gates: Edit["gate"][];
  scopes: Edit["scope"][];
  default_strengths: Partial<Record<Op, number>>;
}

export interface EditSet {
  name: string;
  edits: Edit[];
  fingerprint: string;
}

export interface Receipt {
  fingerprint: string;
  measured: { applied: boolean; positions: number; changed: number; fired: Record<string, number> };
}

/** What the server refuses, in its own words; `param` is the field that it is about. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly param: string | null,
  ) {
    super(message);
  }
}

const KEY = "saescope-key";

function headers(): Record<string, string> {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

export function rememberKey(key: string): void {
  sessionStorage.setItem(KEY, key);
}

async function refusal(response: Response): Promise<Refusal> {
  try {
    const { error } = (await response.json()) as { error: { message: string; param: string | null } };
    return new Refusal(error.message, error.param);
  } catch {
    return new Refusal(`the server answered ${response.status}`, null);
  }
}

export async function get<T>(path: string): Promise<T> {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await refusal(response);
  return (await response.json()) as T;
}

export interface StreamedReply {
  text: string;
  receipt: Receipt | null;
  finish: string | null;
}

/** Stream a completion; `onText` gets the text so far. */
export async function stream(
  path: string,
  body: object,
  signal: AbortSignal,
  onText: (text: string) => void,
): Promise<StreamedReply> {
  const request = { method: "POST", headers: headers(), body: JSON.stringify(body), signal };
  const response = await fetch(path, request);
  if (!response.ok || response.body === null) throw await refusal(response);
  const reply: StreamedReply = { text: "", receipt: null, finish: null };
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new Refusal(chunk.error.message, chunk.error.param);
    if (chunk.steering_receipt) reply.receipt = chunk.steering_receipt;
    const [choice] = chunk.choices ?? [];
    if (!choice) continue;
    reply.text += choice.delta?.content ?? choice.text ?? "";
    reply.finish = choice.finish_reason ?? reply.finish;
    onText(reply.text);
  }
  return reply;
}

interface Chunk {
  choices?: { delta?: { content?: string }; text?: string; finish_reason?: string | null }[];
  steering_receipt?: Receipt;
  error?: { message: string; param: string | null };
}

async function* events(body: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<Chunk> {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    waiting += value;
    const parts = waiting.split("\n\n");
    waiting = parts.pop() ?? "";
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data) as Chunk;
    }
  }
}
