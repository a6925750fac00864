// The first view: a text, and how it sounds.
import { signal } from "@preact/signals";
import { useState } from "preact/hooks";
import { Download } from "./download";
import { Choice, errorOf, Field, modelOf, NOBODY, Problem, WhoFields, whoFields } from "./fields";
import type { Who } from "./fields";
import { type Fields, programs, speak, withSeed } from "./generate";
import * as player from "./player";
import { fields as schemas, formats, inWords, post, Refusal, type FieldSchema } from "./server";
import type { Sound } from "./sound";
import { PlayButton, Wave } from "./wave";

const MAX_HISTORY = 20;
const MAX_HISTORY_SECONDS = 1800; // some 90 MB

interface Item {
  fields: Fields;
  by: string;
  sound: Sound;
}

const history = signal<Item[]>([]);
const text = signal("Hello! Type a text, press Speak, and hear it while it is being made.");
const who = signal<Who>(NOBODY);
const settings = signal<Record<string, string>>({});
const format = signal("wav");
const refusal = signal<Refusal | null>(null);
const problem = signal("");
const speaking = signal<AbortController | null>(null);

/** The settings that the chosen model has: its sampling parameters, and those of every request. */
function schemasOfSettings(): Record<string, FieldSchema> {
  const { max_seconds, normalize } = schemas.value;
  const all = { ...modelOf(who.value)?.parameters, max_seconds, normalize };
  return Object.fromEntries(
    Object.entries(all).filter((one): one is [string, FieldSchema] => one[1] !== undefined),
  );
}

/** The request as the form has it. */
function request(): Fields {
  const fields: Fields = { text: text.value, ...whoFields(who.value) };
  const own: Record<string, string | number> = {};
  for (const [name, schema] of Object.entries(schemasOfSettings())) {
    const given = settings.value[name];
    if (!given) continue;
    const value = isText(schema) ? given : number(given);
    if (name in schemas.value) fields[name] = value;
    else own[name] = value; // a parameter that only this model has
  }
  if (Object.keys(own).length) fields.parameters = own;
  return fields;
}

function isText(schema: FieldSchema): boolean {
  return schema.type === "string" || schema.enum !== undefined;
}

/** A number; or the text as it is, where JavaScript cannot hold it, for the server to refuse. */
function number(value: string): number | string {
  const found = Number(value);
  const kept = Number.isSafeInteger(found) || !Number.isInteger(found);
  return Number.isFinite(found) && kept ? found : value;
}

async function start(): Promise<void> {
  const fields = withSeed(request());
  const by = who.value.voice || `speaker ${fields.speaker}`;
  const control = new AbortController();
  speaking.value?.abort();
  speaking.value = control;
  refusal.value = null;
  problem.value = "";
  try {
    await speak(fields, control.signal, (sound) => {
      history.value = trimmed([{ fields, by, sound }, ...history.value]);
    });
  } catch (error) {
    const known = ["text", "model", "voice", "speaker", ...Object.keys(schemasOfSettings())];
    if (error instanceof Refusal && known.includes(error.param ?? "")) refusal.value = error;
    else problem.value = inWords(error);
    history.value = history.value.filter((one) => one.sound.length);
  } finally {
    if (speaking.value === control) speaking.value = null;
  }
}

function stop(): void {
  speaking.value?.abort();
  player.stop();
}

function trimmed(items: Item[]): Item[] {
  let seconds = 0;
  return items.slice(0, MAX_HISTORY).filter((one, n) => {
    seconds += one.sound.seconds;
    return n === 0 || seconds < MAX_HISTORY_SECONDS;
  });
}

export function Speak() {
  const busy = speaking.value !== null || player.playing.value !== null;
  const named = schemasOfSettings();
  return (
    <>
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          void start();
        }}
        onKeyDown={(event) => {
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void start();
          if (event.key === "Escape") stop();
        }}
      >
        <Field label="Text" error={errorOf(refusal.value, "text")} class="wide">
          {(attributes) => (
            <textarea
              {...attributes}
              rows={3}
              value={text.value}
              onInput={(event) => (text.value = event.currentTarget.value)}
            />
          )}
        </Field>
        <div class="row">
          <WhoFields
            who={who.value}
            refusal={refusal.value}
            onChange={(value) => (who.value = value)}
          />
        </div>
        <details open={Object.keys(named).some((name) => errorOf(refusal.value, name))}>
          <summary>Sampling, seed and format</summary>
          <div class="row">
            {Object.entries(named).map(([name, schema]) => (
              <Setting key={name} name={name} schema={schema} />
            ))}
            <Choice
              label="format of the code below"
              value={format.value}
              options={formats.value}
              onChange={(value) => (format.value = value)}
            />
          </div>
        </details>
        <div class="row actions">
          <button class="primary" title="Ctrl+Enter">Speak</button>
          <button type="button" disabled={!busy} onClick={stop} title="Escape">Stop</button>
          <span class="quiet" role="status">
            {speaking.value ? "Speaking …" : player.playing.value ? "Playing …" : ""}
          </span>
        </div>
        <Problem text={problem.value} />
        <Programs />
      </form>
      <History />
    </>
  );
}

function Setting({ name, schema }: { name: string; schema: FieldSchema }) {
  const set = (value: string) => (settings.value = { ...settings.value, [name]: value });
  const value = settings.value[name] ?? "";
  const error = errorOf(refusal.value, name);
  const standard = modelOf(who.value)?.sampling[name];
  if (schema.enum) {
    const options = schema.enum.map((one): [string, string] =>
      one === (schema.default ?? standard) ? ["", one] : [one, one],
    );
    return <Choice label={name} value={value} options={options} error={error} onChange={set} />;
  }
  return (
    <Field label={name} hint={schema.description} error={error}>
      {(attributes) => (
        <input
          {...attributes}
          inputMode={isText(schema) ? "text" : "decimal"}
          value={value}
          placeholder={standard == null ? "automatic" : String(standard) || "none"}
          onInput={(event) => set(event.currentTarget.value)}
        />
      )}
    </Field>
  );
}

function Programs() {
  const [language, setLanguage] = useState("curl");
  const [copied, setCopied] = useState(false);
  const code = programs[language]!({ ...request(), streaming: true, format: format.value });
  return (
    <details class="programs">
      <summary>The same request as code</summary>
      <div class="row actions">
        {Object.keys(programs).map((name) => (
          <button
            key={name}
            type="button"
            class="small"
            aria-pressed={name === language}
            onClick={() => setLanguage(name)}
          >
            {name}
          </button>
        ))}
        <button
          type="button"
          class="small end"
          onClick={() => {
            copy(code);
            setCopied(true);
            setTimeout(() => setCopied(false), 2000);
          }}
        >
          {copied ? "Copied" : "Copy"}
        </button>
      </div>
      <pre tabIndex={0} aria-label={`The request in ${language}`}>{code}</pre>
    </details>
  );
}

/** `navigator.clipboard` needs HTTPS or this machine; the old way does not. */
function copy(content: string): void {
  if (navigator.clipboard) {
    void navigator.clipboard.writeText(content);
    return;
  }
  const area = document.createElement("textarea");
  area.value = content;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

function History() {
  if (!history.value.length) {
    return <p class="empty">Your speech appears here, to play again and to download.</p>;
  }
  return (
    <section aria-label="History">
      {history.value.map((item, n) => (
        <Entry key={item.sound} item={item} latest={n === 0} />
      ))}
    </section>
  );
}

function Entry({ item, latest }: { item: Item; latest: boolean }) {
  const { sound, fields } = item;
  sound.changes.value; // drawn anew when more has come
  const said = String(fields.text);
  const name = `“${said.length > 40 ? `${said.slice(0, 40)}…` : said}”`;
  return (
    <article class={latest ? "card latest" : "card"}>
      <div class="said">
        <PlayButton sound={sound} name={name} />
        <p>{said}</p>
      </div>
      <Wave sound={sound} name={name} tall={latest} />
      <div class="row facts">
        <Figures sound={sound} gaps={latest ? player.gaps.value : null} />
        <span class="quiet">
          {item.by}, seed {String(fields.seed)}
          {sound.done && !sound.whole ? ", incomplete" : ""}
        </span>
        {sound.done && (
          <Download
            sound={sound}
            name={name}
            file={`speech-${fields.seed}`}
            remake={async (format) => (await post("generate", { ...fields, format })).blob()}
          />
        )}
      </div>
    </article>
  );
}

export function Figures({ sound, gaps }: { sound: Sound; gaps: number | null }) {
  return (
    <dl class="figures">
      <div>
        <dt>First audio</dt>
        <dd>{Math.round(sound.firstAudio ?? 0)} ms</dd>
      </div>
      <div>
        <dt>Real-time factor</dt>
        <dd>{sound.seconds ? sound.realTimeFactor.toFixed(2) : "–"}</dd>
      </div>
      <div>
        <dt>Length</dt>
        <dd>{sound.seconds.toFixed(1)} s</dd>
      </div>
      {gaps !== null && (
        <div>
          <dt>Gaps</dt>
          <dd>{gaps}</dd>
        </div>
      )}
    </dl>
  );
}
