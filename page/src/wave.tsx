// What a sound looks like: waveform, spectrogram, and where it plays.
import { useLayoutEffect, useRef } from "preact/hooks";
import * as player from "./player";
import { BINS, type Sound } from "./sound";

const MIN_SECONDS = 2; // a short beginning is not drawn as wide as the whole

/** Draw the waveform, and below it the spectrogram if there is room for it. */
function draw(canvas: HTMLCanvasElement, sound: Sound, waveShare: number): void {
  const ratio = devicePixelRatio || 1;
  const width = (canvas.width = Math.round(canvas.clientWidth * ratio));
  const height = (canvas.height = Math.round(canvas.clientHeight * ratio));
  const context = canvas.getContext("2d")!;
  const { columns, perColumn } = sound.picture;
  if (!columns.length || !width || !height) return;
  const wave = height * waveShare;
  const scale = width / columnsShown(sound);
  drawSpectrum(context, sound, scale * columns.length, wave, height - wave);
  const style = getComputedStyle(canvas);
  const played = (player.position(sound) ?? 0) * (sound.sampleRate / perColumn);
  const bar = 3 * ratio; // a bar stands for all columns under it
  for (let x = 0; x < scale * columns.length; x += bar) {
    const first = Math.floor(x / scale);
    const last = Math.max(first + 1, Math.floor((x + bar) / scale));
    const peak = columns.slice(first, last).reduce((most, one) => Math.max(most, one.peak), 0);
    const size = Math.max(ratio, peak * wave * 0.94);
    context.fillStyle = style.getPropertyValue(first < played ? "--accent" : "--wave");
    context.fillRect(x, (wave - size) / 2, bar - ratio, size);
  }
}

function columnsShown(sound: Sound): number {
  const { columns, perColumn } = sound.picture;
  return sound.done
    ? columns.length
    : Math.max(columns.length, (MIN_SECONDS * sound.sampleRate) / perColumn);
}

function drawSpectrum(
  target: CanvasRenderingContext2D,
  sound: Sound,
  width: number,
  top: number,
  height: number,
): void {
  if (height < BINS / 8) return;
  const list = getComputedStyle(target.canvas).getPropertyValue("--spectrum");
  target.drawImage(spectrum(sound, list), 0, top, width, height);
}

const spectra = new WeakMap<Sound, { made: string; canvas: OffscreenCanvas }>();

/** The spectrogram with a pixel for each column and frequency; made anew when more has come. */
function spectrum(sound: Sound, list: string): OffscreenCanvas {
  const made = `${sound.changes.peek()} ${list}`;
  const known = spectra.get(sound);
  if (known?.made === made) return known.canvas;
  const { columns } = sound.picture;
  const colors = palette(list);
  const image = new ImageData(columns.length, BINS);
  const pixels = new Uint32Array(image.data.buffer);
  columns.forEach(({ levels }, x) =>
    levels.forEach((level, bin) => {
      pixels[(BINS - 1 - bin) * columns.length + x] = colors[level]!;
    }),
  );
  const canvas = new OffscreenCanvas(columns.length, BINS);
  canvas.getContext("2d")!.putImageData(image, 0, 0);
  spectra.set(sound, { made, canvas });
  return canvas;
}

const palettes = new Map<string, Uint32Array>();

/** 256 colors between those of a list. */
function palette(list: string): Uint32Array {
  let found = palettes.get(list);
  if (!found) {
    const context = new OffscreenCanvas(256, 1).getContext("2d")!;
    const gradient = context.createLinearGradient(0, 0, 256, 0);
    const stops = list.trim().split(/\s+/);
    stops.forEach((color, n) => gradient.addColorStop(n / (stops.length - 1), color));
    context.fillStyle = gradient;
    context.fillRect(0, 0, 256, 1);
    found = new Uint32Array(context.getImageData(0, 0, 256, 1).data.buffer);
    palettes.set(list, found);
  }
  return found;
}

/**
 * A sound's picture.  Over it lies a slider: click, drag or use the arrow keys to hear it from
 * another place.
 */
export function Wave({ sound, name, tall }: { sound: Sound; name: string; tall?: boolean }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const slider = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => {
    let drawn = "";
    let frame = 0;
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const step = () => {
      frame = requestAnimationFrame(step);
      const here = player.position(sound);
      const { clientWidth } = canvas.current!;
      const state = `${sound.changes.peek()} ${here} ${clientWidth} ${dark.matches}`;
      if (state === drawn) return;
      drawn = state;
      draw(canvas.current!, sound, tall ? 0.45 : 1);
      slider.current!.max = String(sound.seconds);
      slider.current!.value = String(here ?? 0);
      slider.current!.setAttribute(
        "aria-valuetext",
        `${(here ?? 0).toFixed(1)} of ${sound.seconds.toFixed(1)} seconds`,
      );
    };
    step();
    return () => cancelAnimationFrame(frame);
  }, [sound]);
  return (
    <div class={tall ? "wave tall" : "wave"}>
      <canvas ref={canvas} aria-hidden="true" />
      <input
        ref={slider}
        type="range"
        min="0"
        step="0.01"
        aria-label={`Position in ${name}`}
        onInput={(event) => {
          void player.play(sound, event.currentTarget.valueAsNumber);
        }}
      />
    </div>
  );
}

/** Play or stop a sound. */
export function PlayButton({ sound, name }: { sound: Sound; name: string }) {
  const on = player.playing.value === sound;
  return (
    <button
      type="button"
      class="round"
      aria-label={`${on ? "Stop" : "Play"} ${name}`}
      onClick={() => (on ? player.stop() : void player.play(sound))}
    >
      <svg viewBox="0 0 24 24" aria-hidden="true">
        <path d={on ? "M7 7h10v10H7z" : "M8 5.5v13l11-6.5z"} />
      </svg>
    </button>
  );
}
