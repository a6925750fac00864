// Plays a sound while it is made, without gaps, and plays it again.
import { signal } from "@preact/signals";
import type { Sound } from "./sound";

const START_SECONDS = 0.03; // from now to the first sample, so that it is not late
const LEAD_SECONDS = 0.1;
const MAX_LEAD_SECONDS = 1;
const AHEAD_SECONDS = 2.5; // browsers run timers of hidden pages once a second
const PIECE_SECONDS = 0.5;
const TICK_MILLISECONDS = 100;

/** What is playing; the page has one player, so that two sounds never play together. */
export const playing = signal<Sound | null>(null);

let context: AudioContext | null = null;
let sources: AudioBufferSourceNode[] = [];
let timer = 0;
let lead = LEAD_SECONDS;
/** The context's frame at which the sound's sample 0 plays; null while samples are waited for. */
let origin: number | null = null;
let next = 0; // the first sample that is not scheduled
let ended: ((whole: boolean) => void) | null = null;

/** How often the sound of this play ran out before more of it came. */
export const gaps = signal(0);

/**
 * The output at a sound's own rate: pieces that the browser resamples one by one would click where
 * they meet.  The first call must come from a click or a key, as browsers keep pages silent before.
 */
export function open(rate: number): AudioContext {
  if (context?.sampleRate !== rate) {
    void context?.close();
    context = new AudioContext({ sampleRate: rate });
  }
  void context.resume();
  return context;
}

/**
 * Play a sound from a position; what was playing stops.
 *
 * @param from seconds
 * @returns once it is over: was it heard to its end?
 */
export function play(sound: Sound, from = 0): Promise<boolean> {
  stop();
  playing.value = sound;
  next = Math.round(from * sound.sampleRate);
  gaps.value = 0;
  lead = LEAD_SECONDS;
  timer = setInterval(pump, TICK_MILLISECONDS);
  const end = new Promise<boolean>((resolve) => (ended = resolve));
  pump();
  return end;
}

/** Be silent at once. */
export function stop(whole = false): void {
  clearInterval(timer);
  for (const source of sources) {
    source.onended = null;
    source.stop();
    source.disconnect();
  }
  sources = [];
  origin = null;
  playing.value = null;
  ended?.(whole);
  ended = null;
}

/** The sample of a sound that is heard now, in seconds; null if it is not playing. */
export function position(sound: Sound): number | null {
  if (playing.value !== sound) return null;
  if (origin === null || !context) return next / sound.sampleRate;
  const heard = context.currentTime - (context.outputLatency || 0) - origin / sound.sampleRate;
  return Math.min(Math.max(heard, 0), sound.seconds);
}

/** Schedule what has come.  Called when it comes and by the timer. */
export function pump(): void {
  const sound = playing.value;
  if (!sound) return;
  const rate = sound.sampleRate;
  const output = open(rate);
  const now = Math.ceil(output.currentTime * rate);
  if (origin !== null && origin + next < now && next < sound.length) {
    origin = null; // it ran out
    gaps.value++;
    lead = Math.min(2 * lead, MAX_LEAD_SECONDS);
  }
  if (next >= sound.length) {
    const over = sound.done && (origin === null || origin + next <= now);
    if (over) stop(true);
    return;
  }
  if (origin === null) {
    if (!sound.done && sound.length - next < lead * rate) return;
    origin = now + Math.round(START_SECONDS * rate) - next;
  }
  while (next < sound.length && origin + next < now + AHEAD_SECONDS * rate) {
    const samples = sound.piece(next).subarray(0, PIECE_SECONDS * rate);
    schedule(output, samples, (origin + next) / rate);
    next += samples.length;
  }
}

function schedule(output: AudioContext, samples: Int16Array, time: number): void {
  const buffer = output.createBuffer(1, samples.length, output.sampleRate);
  buffer.copyToChannel(Float32Array.from(samples, (sample) => sample / 32768), 0);
  const source = new AudioBufferSourceNode(output, { buffer });
  source.connect(output.destination);
  source.start(time);
  source.onended = () => sources.splice(sources.indexOf(source), 1);
  sources.push(source);
}
