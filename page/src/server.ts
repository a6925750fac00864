// The server as the page sees it: addresses, the key, errors, what is loaded and how busy it is.
import { computed, signal } from "@preact/signals";

/** The server's address with a final slash; the page may be served below a path. */
export const BASE = new URL(".", location.href);

const STORED_KEY = "vox-serve-key";
export const key = signal(sessionStorage.getItem(STORED_KEY) ?? "");
/** The server has refused a request for want of a key. */
export const keyRefused = signal("");

export function setKey(text: string): void {
  key.value = text.trim();
  keyRefused.value = "";
  sessionStorage.setItem(STORED_KEY, key.value); // ends with the tab
  void refresh();
}

/** What the server says when it refuses: `param` names the field at fault. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly param: string | null = null,
    readonly code = "",
  ) {
    super(message);
  }
}

export interface Named {
  name: string;
  speaker: number;
}

export interface Model {
  name: string;
  summary: string;
  device: string;
  dtype: string;
  voices: Named[];
  sample_rate: number;
  max_seconds: number;
  num_slots: number;
  takes_context: boolean;
  /** The defaults of its sampling parameters, and what each of them may be. */
  sampling: Record<string, number | string | null>;
  parameters: Record<string, FieldSchema>;
}

export interface Voice extends Named {
  model: string;
  text?: string;
  seconds?: number;
  created_at?: number | null;
  kept?: boolean;
}

export interface ModelHealth {
  model: string;
  status: string;
  running: number;
  waiting: number;
  slots: number;
  reason?: string;
}

export interface Health {
  status: string;
  models: ModelHealth[];
  broken_plugins: Record<string, string>;
  broken_voices: Record<string, string>;
}

/** A field of a request as the OpenAPI document describes it. */
export interface FieldSchema {
  description?: string;
  type?: string;
  enum?: string[];
  minimum?: number;
  maximum?: number;
  default?: unknown;
  anyOf?: FieldSchema[];
}

export const models = signal<Model[]>([]);
export const voices = signal<Voice[]>([]);
export const health = signal<Health | null>(null);
export const fields = signal<Record<string, FieldSchema>>({});
/** Why the server's state is not known; empty if it is. */
export const unreachable = signal("");
export const formats = computed(() => fields.value.format?.enum ?? ["wav"]);

function headers(): Record<string, string> {
  return key.value ? { Authorization: `Bearer ${key.value}` } : {};
}

/** Send a request.  Throws a Refusal unless the answer is a success. */
export async function send(path: string, options: RequestInit = {}): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(new URL(path, BASE), {
      ...options,
      headers: { ...headers(), ...(options.headers as Record<string, string>) },
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refusal("The server cannot be reached.", null, "unreachable");
  }
  if (answer.ok) return answer;
  const refusal = await refusalOf(answer);
  if (answer.status === 401) keyRefused.value = refusal.message;
  throw refusal;
}

async function refusalOf(answer: Response): Promise<Refusal> {
  try {
    const { error } = await answer.json();
    return new Refusal(error.message, error.param, error.code);
  } catch {
    return new Refusal(`The server answered with status ${answer.status}.`);
  }
}

export function post(path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
  return send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

/** What an error says to a person; empty for what the person asked for. */
export function inWords(error: unknown): string {
  if (error instanceof DOMException && error.name === "AbortError") return "";
  return error instanceof Error ? error.message : String(error);
}

/** The WebSocket of text that arrives in pieces.  Browsers can send it no header. */
export function openSocket(): WebSocket {
  const address = new URL("v1/audio/stream", BASE);
  address.protocol = address.protocol.replace("http", "ws");
  if (!key.value) return new WebSocket(address);
  const encoded = btoa(key.value).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return new WebSocket(address, ["vox-serve", `vox-serve-key.${encoded}`]);
}

export async function refreshVoices(): Promise<void> {
  voices.value = (await (await send("v1/audio/voices")).json()).voices;
}

/** Read all that the page knows of the server. */
export async function refresh(): Promise<void> {
  try {
    const [loaded, document] = await Promise.all([send("models"), send("openapi.json")]);
    models.value = (await loaded.json()).models;
    fields.value = (await document.json()).components.schemas.GenerateRequest.properties;
    await refreshVoices();
  } catch {
    // `look` says that the server cannot be reached, the key's field that it wants a key.
  }
}

let seen = "";

/** Ask for the server's state, and for its models when that of one has changed. */
export async function look(): Promise<void> {
  try {
    const answer = await fetch(new URL("health", BASE)); // 503 has the same body
    const found: Health = await answer.json();
    health.value = found;
    unreachable.value = "";
  } catch {
    health.value = null;
    unreachable.value = "The server cannot be reached.";
    return;
  }
  const now = health.value.models.map((one) => `${one.model} ${one.status}`).join();
  if (now !== seen || !models.value.length) {
    seen = now;
    await refresh();
  }
}

const SECONDS_BETWEEN_LOOKS = 3;

/** Look at once and then every few seconds while the page can be seen. */
export function watch(): void {
  void look();
  setInterval(() => document.hidden || void look(), SECONDS_BETWEEN_LOOKS * 1000);
}

/** Random hexadecimal digits.  `crypto.randomUUID` needs HTTPS. */
export function randomName(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}

export function randomSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
}
