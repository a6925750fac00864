// Sound that grows while it is made: its samples, its figures, and what is drawn of it.
import FFT from "fft.js";
import { signal } from "@preact/signals";

const COLUMNS = 800;
const WINDOW = 512;
export const BINS = 128;
const FLOOR_DB = -75;

const fft = new FFT(WINDOW);
const spectrum = fft.createComplexArray() as number[];
const windowed = new Float64Array(WINDOW);
const HANN = Float64Array.from(
  { length: WINDOW },
  (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / WINDOW),
);

/** The first line of the spectrum that each bin stands for: bins are even on the mel scale. */
function edges(sampleRate: number): number[] {
  const mel = (hertz: number) => Math.log(1 + hertz / 700);
  const top = mel(sampleRate / 2);
  return Array.from({ length: BINS + 1 }, (_, bin) => {
    const hertz = 700 * (Math.exp((top * bin) / BINS) - 1);
    return Math.min(WINDOW / 2 - 1, Math.floor((hertz / sampleRate) * WINDOW));
  });
}

/** One column of the picture: the loudest sample, and the level of each frequency, 0 to 255. */
interface Column {
  peak: number;
  levels: Uint8Array;
}

/**
 * Waveform and spectrogram as columns of equal length.  When there are too many, each two become
 * one, so a picture of any length costs the same to draw, and all of it time linear in the sound.
 */
export class Picture {
  columns: Column[] = [];
  /** Samples in a column. */
  perColumn: number;
  private recent = new Float64Array(WINDOW); // a ring
  private seen = 0;
  private filled = 0;
  private peak = 0;

  private readonly edges: number[];

  constructor(sampleRate: number) {
    this.edges = edges(sampleRate);
    this.perColumn = Math.round(sampleRate / 100);
  }

  add(samples: Int16Array): void {
    for (const sample of samples) {
      this.recent[this.seen++ % WINDOW] = sample / 32768;
      this.peak = Math.max(this.peak, Math.abs(sample) / 32768);
      if (++this.filled >= this.perColumn) this.finishColumn();
    }
  }

  private finishColumn(): void {
    this.columns.push({ peak: this.peak, levels: this.levels() });
    this.filled = this.peak = 0;
    if (this.columns.length < COLUMNS) return;
    const merged: Column[] = [];
    for (let n = 0; n < COLUMNS; n += 2) {
      const [one, two] = [this.columns[n]!, this.columns[n + 1]!];
      const levels = one.levels.map((level, bin) => Math.max(level, two.levels[bin]!));
      merged.push({ peak: Math.max(one.peak, two.peak), levels });
    }
    this.columns = merged;
    this.perColumn *= 2;
  }

  /** The levels of the last samples, from `FLOOR_DB` below full scale to full scale. */
  private levels(): Uint8Array {
    for (let n = 0; n < WINDOW; n++) {
      windowed[n] = this.recent[(this.seen + n) % WINDOW]! * HANN[n]!;
    }
    fft.realTransform(spectrum, windowed);
    const found = new Uint8Array(BINS);
    for (let bin = 0; bin < BINS; bin++) {
      let power = 0;
      for (let n = this.edges[bin]!; n <= Math.max(this.edges[bin]!, this.edges[bin + 1]! - 1); n++) {
        power = Math.max(power, spectrum[2 * n]! ** 2 + spectrum[2 * n + 1]! ** 2);
      }
      const decibels = 10 * Math.log10(power / (WINDOW / 4) ** 2 + 1e-12);
      found[bin] = Math.min(255, Math.max(0, 255 * (1 - decibels / FLOOR_DB)));
    }
    return found;
  }
}

/** Samples that arrive in pieces. */
export class Sound {
  /** Counts changes, so that what shows a sound is drawn anew. */
  readonly changes = signal(0);
  readonly picture: Picture;
  length = 0;
  /** No more will come. */
  done = false;
  /** All of it came: it was not stopped, and did not break off. */
  whole = false;
  /** Milliseconds from the request to its first sound, and to its last so far. */
  firstAudio: number | null = null;
  lastAudio = 0;
  private pieces: Int16Array[] = [];
  private starts: number[] = [];
  private half: Uint8Array | null = null;

  constructor(
    readonly sampleRate: number,
    private readonly begun = performance.now(),
  ) {
    this.picture = new Picture(sampleRate);
  }

  get seconds(): number {
    return this.length / this.sampleRate;
  }

  /** Time to make it over the time it plays. */
  get realTimeFactor(): number {
    return this.lastAudio / 1000 / this.seconds;
  }

  /** Add little-endian 16-bit samples; a piece may end in the middle of one. */
  add(bytes: Uint8Array): void {
    if (this.half) {
      const joined = new Uint8Array(bytes.length + 1);
      joined.set(this.half);
      joined.set(bytes, 1);
      bytes = joined;
      this.half = null;
    }
    if (bytes.length % 2) this.half = bytes.slice(-1);
    const whole = bytes.slice(0, bytes.length - (bytes.length % 2)); // aligned, and a copy
    if (!whole.length) return;
    const samples = new Int16Array(whole.buffer);
    this.lastAudio = performance.now() - this.begun;
    this.firstAudio ??= this.lastAudio;
    this.starts.push(this.length);
    this.pieces.push(samples);
    this.length += samples.length;
    this.picture.add(samples);
    this.changes.value++;
  }

  finish(whole: boolean): void {
    this.done = true;
    this.whole = whole;
    this.changes.value++;
  }

  /** Samples from `start` on, up to the end of the piece that they are in. */
  piece(start: number): Int16Array {
    let low = 0;
    let high = this.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle]! <= start) low = middle;
      else high = middle - 1;
    }
    return this.pieces[low]!.subarray(start - this.starts[low]!);
  }

  pcm(): Blob {
    return new Blob(this.pieces as Int16Array<ArrayBuffer>[], { type: "audio/pcm" });
  }

  wav(): Blob {
    return wav(this.pieces, this.sampleRate);
  }
}

/** A WAV file of mono 16-bit samples. */
export function wav(pieces: Int16Array[], sampleRate: number): Blob {
  const size = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const word = (at: number, text: string) =>
    [...text].forEach((letter, n) => header.setUint8(at + n, letter.charCodeAt(0)));
  word(0, "RIFF");
  header.setUint32(4, 36 + size, true);
  word(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, sampleRate, true);
  header.setUint32(28, 2 * sampleRate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  word(36, "data");
  header.setUint32(40, size, true);
  return new Blob([header, ...(pieces as Int16Array<ArrayBuffer>[])], { type: "audio/wav" });
}
