// Voices: hear them, register one from a file or the microphone, delete it.
import { signal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { Choice, errorOf, Field, ModelChoice, modelOf, NOBODY, Problem } from "./fields";
import type { Who } from "./fields";
import { speak } from "./generate";
import * as player from "./player";
import { inWords, models, Refusal, refreshVoices, send, voices, type Voice } from "./server";
import { wav } from "./sound";

const MAX_SECONDS = 30;
const RECORDED_RATE = 24000;
const GREETING = "Hello, this is how I sound. It is a pleasure to speak for you.";

interface Recording {
  recorder: MediaRecorder;
  meter: AnalyserNode;
  begun: number;
}

const who = signal<Who>(NOBODY);
const name = signal("");
const transcript = signal("");
const sample = signal<{ file: Blob; name: string; address: string } | null>(null);
const recording = signal<Recording | null>(null);
const refusal = signal<Refusal | null>(null);
const problem = signal("");
const done = signal("");
const busy = signal("");

function take(file: Blob, called: string): void {
  if (sample.value) URL.revokeObjectURL(sample.value.address);
  sample.value = { file, name: called, address: URL.createObjectURL(file) };
  refusal.value = null;
}

async function record(): Promise<void> {
  problem.value = "";
  if (!navigator.mediaDevices) {
    problem.value = "Browsers record only on HTTPS pages and on localhost. Upload a file instead.";
    return;
  }
  let stream: MediaStream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    problem.value = `The microphone cannot be used: ${inWords(error)}`;
    return;
  }
  const context = new AudioContext({ sampleRate: RECORDED_RATE });
  const meter = new AnalyserNode(context, { fftSize: 2048 });
  context.createMediaStreamSource(stream).connect(meter);
  const recorder = new MediaRecorder(stream);
  const pieces: Blob[] = [];
  recorder.ondataavailable = ({ data }) => pieces.push(data);
  recorder.onstop = async () => {
    clearTimeout(timer);
    recording.value = null;
    stream.getTracks().forEach((track) => track.stop());
    try {
      // What browsers record, the server cannot read: send it as WAV.
      const decoded = await context.decodeAudioData(await new Blob(pieces).arrayBuffer());
      take(toWav(decoded), "recording.wav");
    } catch (error) {
      problem.value = `The recording cannot be used: ${inWords(error)}`;
    }
    await context.close();
  };
  const timer = setTimeout(() => recorder.stop(), MAX_SECONDS * 1000);
  recorder.start();
  recording.value = { recorder, meter, begun: performance.now() };
}

function toWav(audio: AudioBuffer): Blob {
  const samples = audio.getChannelData(0).slice(0, MAX_SECONDS * RECORDED_RATE);
  const whole = Int16Array.from(samples, (one) => Math.max(-1, Math.min(1, one)) * 32767);
  return wav([whole], audio.sampleRate);
}

async function register(): Promise<void> {
  const form = new FormData();
  form.set("name", name.value);
  if (sample.value) form.set("audio", sample.value.file, sample.value.name);
  form.set("text", transcript.value);
  form.set("speaker", who.value.speaker || "0");
  const model = modelOf(who.value)?.name;
  if (model) form.set("model", model);
  refusal.value = null;
  problem.value = done.value = "";
  busy.value = "Registering …";
  try {
    await send("v1/audio/voices", { method: "POST", body: form });
    done.value = `${name.value} is registered: choose it in any view.`;
    name.value = transcript.value = "";
    sample.value = null;
    await refreshVoices();
  } catch (error) {
    if (error instanceof Refusal && FIELDS.includes(error.param ?? "")) refusal.value = error;
    else problem.value = inWords(error);
  } finally {
    busy.value = "";
  }
}

const FIELDS = ["name", "audio", "text", "speaker", "model"];

let hearing: AbortController | null = null;

async function hear(voice: Voice): Promise<void> {
  hearing?.abort();
  hearing = new AbortController();
  problem.value = "";
  const model = models.value.length > 1 ? voice.model : undefined;
  try {
    await speak({ text: GREETING, voice: voice.name, model }, hearing.signal, () => {});
  } catch (error) {
    problem.value = inWords(error);
  }
}

async function remove(voice: Voice): Promise<void> {
  problem.value = done.value = "";
  try {
    await send(`v1/audio/voices/${encodeURIComponent(voice.name)}`, { method: "DELETE" });
    done.value = `${voice.name} is deleted.`;
    await refreshVoices();
  } catch (error) {
    problem.value = inWords(error);
  }
}

export function Voices() {
  return (
    <>
      <section class="card" aria-labelledby="all-voices">
        <h2 id="all-voices">Voices</h2>
        <ul class="voices">
          {voices.value.map((voice) => (
            <li key={`${voice.model}/${voice.name}`}>
              <div>
                <b>{voice.name}</b>{" "}
                <span class="quiet">
                  {voice.model}, speaker {voice.speaker}
                  {voice.seconds === undefined ? "" : `, ${voice.seconds.toFixed(1)} s of sample`}
                  {voice.kept === false ? ", lost when the server stops" : ""}
                </span>
                {voice.text && <p class="quiet">“{voice.text}”</p>}
              </div>
              <span class="actions">
                <button
                  type="button"
                  class="small"
                  aria-label={`Hear ${voice.name}`}
                  onClick={() => void hear(voice)}
                >
                  Hear
                </button>
                {voice.text !== undefined && (
                  <button
                    type="button"
                    class="small warn"
                    aria-label={`Delete ${voice.name}`}
                    onClick={() => void remove(voice)}
                  >
                    Delete
                  </button>
                )}
              </span>
            </li>
          ))}
        </ul>
        <button
          type="button"
          disabled={!player.playing.value}
          onClick={() => {
            hearing?.abort();
            player.stop();
          }}
        >
          Stop
        </button>
        <Problem text={problem.value} />
        <p role="status" class="quiet">{busy.value || done.value}</p>
      </section>
      <NewVoice />
    </>
  );
}

function NewVoice() {
  const model = modelOf(who.value);
  const wrong = (...params: string[]) => errorOf(refusal.value, ...params);
  return (
    <form
      class="card"
      aria-labelledby="new-voice"
      onSubmit={(event) => {
        event.preventDefault();
        void register();
      }}
    >
      <h2 id="new-voice">A new voice</h2>
      <p class="quiet">
        Up to {MAX_SECONDS} seconds of one person speaking, and the words that are said. Use a voice
        only with its owner's consent.
      </p>
      <div class="row">
        <Field label="Sample" error={wrong("audio")}>
          {(attributes) => (
            <input
              {...attributes}
              type="file"
              accept="audio/*"
              onChange={(event) => {
                const file = event.currentTarget.files?.[0];
                if (file) take(file, file.name);
              }}
            />
          )}
        </Field>
        <Recorder />
      </div>
      {sample.value && (
        <audio controls src={sample.value.address} aria-label={`Sample: ${sample.value.name}`} />
      )}
      <Field label="What is said in it" error={wrong("text")} class="wide">
        {(attributes) => (
          <textarea
            {...attributes}
            rows={2}
            value={transcript.value}
            onInput={(event) => (transcript.value = event.currentTarget.value)}
          />
        )}
      </Field>
      <div class="row">
        <Field label="Name" error={wrong("name")}>
          {(attributes) => (
            <input
              {...attributes}
              value={name.value}
              autocomplete="off"
              onInput={(event) => (name.value = event.currentTarget.value)}
            />
          )}
        </Field>
        <ModelChoice
          who={who.value}
          refusal={refusal.value}
          onChange={(value) => (who.value = value)}
        />
        <Choice
          label="As speaker"
          value={who.value.speaker || "0"}
          error={wrong("speaker")}
          options={[...new Set(model?.voices.map((one) => String(one.speaker)))].sort()}
          onChange={(speaker) => (who.value = { ...who.value, speaker })}
        />
      </div>
      <div class="row actions">
        <button class="primary" disabled={!!busy.value}>Register</button>
      </div>
    </form>
  );
}

function Recorder() {
  const level = useRef<HTMLMeterElement>(null);
  const clock = useRef<HTMLSpanElement>(null);
  const now = recording.value;
  useLayoutEffect(() => {
    if (!now) return;
    const samples = new Float32Array(now.meter.fftSize);
    let frame = 0;
    const step = () => {
      frame = requestAnimationFrame(step);
      now.meter.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, one) => sum + one * one, 0) / samples.length;
      level.current!.value = 60 + 10 * Math.log10(power + 1e-6); // from -60 dB on
      clock.current!.textContent = `${((performance.now() - now.begun) / 1000).toFixed(1)} s`;
    };
    step();
    return () => cancelAnimationFrame(frame);
  }, [now]);
  if (!now) {
    return (
      <div class="field">
        <span class="label">or</span>
        <button type="button" onClick={() => void record()}>Record</button>
      </div>
    );
  }
  return (
    <div class="field">
      <label for="level">Level</label>
      <span class="recording">
        <meter id="level" ref={level} min="0" max="60" low={15} high={57} optimum={40} />
        <span ref={clock} />
        <button type="button" class="warn" onClick={() => now.recorder.stop()}>
          Stop recording
        </button>
      </span>
    </div>
  );
}
