// Text that arrives bit by bit, as from a language model, and speech that can be interrupted.
import { signal, type Signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { Download } from "./download";
import { errorOf, Field, NOBODY, Problem, WhoFields, whoFields } from "./fields";
import type { Who } from "./fields";
import { sampleRate } from "./generate";
import * as player from "./player";
import { look, openSocket, Refusal, send } from "./server";
import { Sound } from "./sound";
import { PlayButton, Wave } from "./wave";

const EXAMPLE =
  "I am a text that comes word by word, as a language model writes it. " +
  "You hear my first sentence while the second is still being written. " +
  "Press Interrupt, or begin to type, and I am silent at once. " +
  "What I had not yet said is then forgotten!";
const MILLISECONDS_BETWEEN_WORDS = 150;

/** What is spoken up to the end of a line, or to an interruption. */
interface Utterance {
  sound: Sound;
  /** Seconds of the session's sound before this. */
  offset: number;
  segments: Signal<{ text: string; start: number }[]>;
}

const who = signal<Who>(NOBODY);
const typed = signal("");
const utterances = signal<Utterance[]>([]);
/** Text that was sent and is not spoken yet, line by line; the last one is not whole. */
const waiting = signal([""]);
const refusal = signal<Refusal | null>(null);
const problem = signal("");
const open = signal(false);
let socket: WebSocket | null = null;
let rate = 24000;
/** A `cancel` is on its way: what comes before its answer is dropped. */
let cancelling = false;
let offset = 0;
let robot = 0;

function connect(): WebSocket {
  if (socket) return socket;
  const fields = whoFields(who.value);
  player.open(sampleRate(fields.model as string | undefined));
  refusal.value = null;
  problem.value = "";
  cancelling = false;
  offset = 0;
  const mine = (socket = openSocket());
  open.value = true;
  mine.binaryType = "arraybuffer";
  mine.onopen = () => mine.send(JSON.stringify({ type: "start", format: "pcm", ...fields }));
  mine.onmessage = ({ data }) => {
    if (mine === socket) receive(data);
  };
  mine.onclose = (event) => {
    if (mine !== socket) return;
    finish();
    if (event.code === 1006) void explain();
  };
  return mine;
}

/** A handshake that was refused: browsers do not show why, so ask where an answer can be read. */
async function explain(): Promise<void> {
  problem.value = "The connection was lost.";
  await look();
  try {
    await send("v1/audio/stream");
  } catch (error) {
    // 426, "this address speaks WebSocket": the key is not what it was refused for.
    if (error instanceof Refusal && error.code !== "upgrade_required") {
      problem.value = `${problem.value} ${error.message}`;
    }
  }
}

function finish(): void {
  stopRobot();
  socket = null;
  open.value = false;
  waiting.value = [""];
  whole(0);
}

function current(): Utterance | undefined {
  const last = utterances.value.at(-1);
  return last?.sound.done ? undefined : last;
}

function receive(data: ArrayBuffer | string): void {
  if (data instanceof ArrayBuffer) {
    if (cancelling) return;
    current()?.sound.add(new Uint8Array(data));
    player.pump();
    return;
  }
  const message = JSON.parse(data);
  if (message.type === "started") rate = message.sample_rate;
  else if (message.type === "segment" && !cancelling) segment(message.text, message.start_seconds);
  else if (message.type === "cancelled") {
    cancelling = false;
    offset = message.seconds; // what was dropped here counts, too
  } else if (message.type === "flushed" && !cancelling) {
    waiting.value = waiting.value.slice(1);
    whole(message.seconds);
  } else if (message.type === "done") whole(message.seconds);
  else if (message.type === "error") {
    const { message: words, param, code } = message.error;
    const found = new Refusal(words, param, code);
    if (["model", "voice", "speaker"].includes(param)) refusal.value = found;
    else problem.value = message.text ? `“${message.text}”: ${words}` : words;
  }
}

/** The utterance has all come; what follows is another one. */
function whole(seconds: number): void {
  current()?.sound.finish(true);
  offset = seconds;
  player.pump();
}

function segment(text: string, start: number): void {
  let now = current();
  if (!now) {
    now = { sound: new Sound(rate), offset, segments: signal([]) };
    utterances.value = [...utterances.value, now];
    void player.play(now.sound);
  }
  now.segments.value = [...now.segments.value, { text, start: start - now.offset }];
  const [line = "", ...rest] = waiting.value;
  waiting.value = [line.trimStart().slice(text.length), ...rest];
}

function tell(type: string, more: object = {}): void {
  const to = connect();
  const message = JSON.stringify({ type, ...more });
  if (to.readyState === WebSocket.OPEN) to.send(message);
  else to.addEventListener("open", () => to.send(message), { once: true });
}

function write(text: string): void {
  const last = waiting.value.length - 1;
  waiting.value = waiting.value.with(last, waiting.value[last] + text);
  tell("text", { text });
}

/** Send the words that are complete. */
function type(text: string): void {
  const fresh = !typed.value && !waiting.value.at(-1);
  if (robot || (fresh && player.playing.value)) interrupt(); // barge-in
  const words = text.lastIndexOf(" ") + 1;
  if (words) write(text.slice(0, words));
  typed.value = text.slice(words);
}

/** The line is whole: speak it, although the sentence may not have ended. */
function enter(): void {
  if (typed.value) write(typed.value);
  typed.value = "";
  if (socket) flush();
}

function flush(): void {
  waiting.value = [...waiting.value, ""];
  tell("flush");
}

/** Barge-in: silence here at once, and then at the server. */
function interrupt(): void {
  stopRobot();
  player.stop();
  waiting.value = [""];
  current()?.sound.finish(false);
  if (socket) {
    cancelling = true;
    tell("cancel");
  }
}

function stopRobot(): void {
  clearInterval(robot);
  robot = 0;
}

function startRobot(): void {
  interrupt();
  const words = EXAMPLE.split(/(?<= )/);
  robot = setInterval(() => {
    const word = words.shift();
    if (word !== undefined) return write(word);
    stopRobot();
    flush();
  }, MILLISECONDS_BETWEEN_WORDS);
}

function close(): void {
  if (socket) tell("end");
}

export function Live() {
  const playing = player.playing.value !== null;
  const left = waiting.value.join(" ").trim();
  return (
    <>
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          enter();
        }}
        onKeyDown={(event) => {
          if (event.key === "Escape") interrupt();
        }}
      >
        <p class="quiet">
          Each word is sent as you type it. A sentence is spoken as soon as it is whole, a line at
          Enter. Begin another line while it speaks, and it falls silent.
        </p>
        <fieldset class="row plain" disabled={open.value}>
          <WhoFields
            who={who.value}
            refusal={refusal.value}
            onChange={(value) => (who.value = value)}
          />
        </fieldset>
        <Field label="Type here" error={errorOf(refusal.value, "text")} class="wide">
          {(attributes) => (
            <input
              {...attributes}
              value={typed.value}
              autocomplete="off"
              onInput={(event) => type(event.currentTarget.value)}
            />
          )}
        </Field>
        <div class="row actions">
          <button class="primary">Speak now</button>
          <button
            type="button"
            class="warn"
            disabled={!playing && !left}
            onClick={interrupt}
            title="Escape"
          >
            Interrupt
          </button>
          <button type="button" onClick={startRobot}>Play an example</button>
          <button type="button" disabled={!open.value} onClick={close}>Close</button>
          <span class="quiet" role="status">{open.value ? "connected" : "not connected"}</span>
        </div>
        <Problem text={problem.value} />
      </form>
      <section aria-label="What was spoken" aria-live="polite">
        {utterances.value.map((one, n) => <Spoken key={one} utterance={one} number={n + 1} />)}
        {left && <p class="waiting">{left}</p>}
      </section>
    </>
  );
}

function Spoken({ utterance, number }: { utterance: Utterance; number: number }) {
  const { sound } = utterance;
  const segments = utterance.segments.value;
  sound.changes.value; // drawn anew when more has come
  const [heard, setHeard] = useState(-1);
  const playing = player.playing.value === sound;
  useEffect(() => {
    if (!playing) return;
    const timer = setInterval(() => {
      const here = player.position(sound) ?? 0;
      setHeard(segments.findLastIndex(({ start }) => start <= here));
    }, 100);
    return () => clearInterval(timer);
  }, [playing, segments]);
  const name = `utterance ${number}`;
  return (
    <article class="card">
      <p class="segments">
        {segments.map(({ text }, n) => (
          <span key={n} class={playing && n === heard ? "now" : ""}>{text} </span>
        ))}
        {sound.done && !sound.whole && <em class="quiet">interrupted</em>}
      </p>
      <div class="heard">
        <PlayButton sound={sound} name={name} />
        <Wave sound={sound} name={name} />
        <Download sound={sound} name={name} file={`utterance-${number}`} />
      </div>
    </article>
  );
}
