// Two speakers who answer each other; the server keeps what was said.
import { signal } from "@preact/signals";
import { Download } from "./download";
import { Choice, errorOf, Field, ModelChoice, modelOf, NOBODY, Problem, voicesOf } from "./fields";
import type { Who } from "./fields";
import { speak, withSeed, type Fields } from "./generate";
import * as player from "./player";
import type { Sound } from "./sound";
import { PlayButton, Wave } from "./wave";
import { inWords, models, randomName, Refusal, send } from "./server";

interface Turn {
  side: 0 | 1;
  by: string;
  text: string;
  sound: Sound | null;
  problem: string;
}

const who = signal<Who>(NOBODY);
/** The voices of the two; empty is the model's first and second. */
const sides = signal<[string, string]>(["", ""]);
const turns = signal<Turn[]>([]);
const text = signal("");
const side = signal<0 | 1>(0);
const speaking = signal<AbortController | null>(null);
const refusal = signal<Refusal | null>(null);
let name = randomName();

function voiceOf(which: 0 | 1): string {
  const named = voicesOf(modelOf(who.value)?.name);
  return sides.value[which] || (named[which] ?? named[0])?.name || "";
}

async function say(): Promise<void> {
  if (speaking.value) return;
  const turn = {
    side: side.value,
    by: voiceOf(side.value),
    text: text.value,
    sound: null,
    problem: "",
  } satisfies Turn;
  const here = turns.value.length;
  const update = (more: Partial<Turn>) => {
    const now = turns.value[here];
    if (now) turns.value = turns.value.with(here, { ...now, ...more });
  };
  const control = new AbortController();
  speaking.value = control;
  refusal.value = null;
  turns.value = [...turns.value, turn];
  const fields: Fields = withSeed({
    text: turn.text,
    voice: turn.by,
    model: models.value.length > 1 ? modelOf(who.value)?.name : undefined,
    conversation: name,
  });
  try {
    await speak(fields, control.signal, (sound) => update({ sound }));
    text.value = "";
    side.value = side.value === 0 ? 1 : 0;
  } catch (error) {
    if (error instanceof Refusal && error.param) {
      refusal.value = error;
      turns.value = turns.value.slice(0, here);
    } else {
      update({ problem: inWords(error) || "Stopped: the server does not remember this turn." });
    }
  } finally {
    speaking.value = null;
  }
}

function stop(): void {
  speaking.value?.abort();
  player.stop();
}

/** Hear all turns, one after the other. */
async function playAll(): Promise<void> {
  for (const { sound } of turns.value) {
    if (sound && !(await player.play(sound))) return;
  }
}

async function forget(): Promise<void> {
  stop();
  const old = name;
  const model = models.value.length > 1 ? modelOf(who.value)?.name : undefined;
  name = randomName();
  turns.value = [];
  side.value = 0;
  refusal.value = null;
  const query = model ? `?model=${encodeURIComponent(model)}` : "";
  await send(`conversations/${old}${query}`, { method: "DELETE" }).catch(() => {
    // There is none before its first turn; otherwise the server forgets it after a while.
  });
}

export function Conversation() {
  const model = modelOf(who.value);
  if (model && !model.takes_context) {
    return (
      <div class="card">
        <ModelChoice who={who.value} refusal={null} onChange={(value) => (who.value = value)} />
        <Problem text={`${model.name} cannot follow a conversation: it was not trained to.`} />
      </div>
    );
  }
  const options = voicesOf(model?.name).map((one) => one.name);
  const param = refusal.value?.param;
  return (
    <>
      <div class="card row">
        <ModelChoice
          who={who.value}
          refusal={refusal.value}
          onChange={(value) => {
            void forget();
            sides.value = ["", ""];
            who.value = value;
          }}
        />
        {([0, 1] as const).map((which) => (
          <Choice
            key={which}
            label={which ? "Second speaker" : "First speaker"}
            value={voiceOf(which)}
            options={options}
            onChange={(value) => {
              const [first, second] = sides.value;
              sides.value = which ? [first, value] : [value, second];
            }}
          />
        ))}
      </div>
      <section class="bubbles" aria-label="Conversation" aria-live="polite">
        {turns.value.map((turn, n) => <Bubble key={n} turn={turn} number={n + 1} />)}
        {!turns.value.length && (
          <p class="empty">
            Say something as the first speaker. Each turn is spoken as an answer to all before it.
          </p>
        )}
      </section>
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault();
          void say();
        }}
      >
        <div class="row speakers" role="group" aria-label="Who speaks next">
          {([0, 1] as const).map((which) => (
            <button
              key={which}
              type="button"
              class="small"
              aria-pressed={side.value === which}
              onClick={() => (side.value = which)}
            >
              {which ? "Second" : "First"}: {voiceOf(which)}
            </button>
          ))}
        </div>
        <Field label="Next turn" error={errorOf(refusal.value, "text")} class="wide">
          {(attributes) => (
            <input
              {...attributes}
              value={text.value}
              autocomplete="off"
              onInput={(event) => (text.value = event.currentTarget.value)}
            />
          )}
        </Field>
        {param && param !== "text" && <Problem text={refusal.value?.message} />}
        <div class="row actions">
          <button class="primary" disabled={!!speaking.value}>Say</button>
          <button
            type="button"
            disabled={!speaking.value && !player.playing.value}
            onClick={stop}
          >
            Stop
          </button>
          <button type="button" disabled={!turns.value.length} onClick={() => void playAll()}>
            Play all
          </button>
          <button type="button" disabled={!turns.value.length} onClick={() => void forget()}>
            Start over
          </button>
        </div>
      </form>
    </>
  );
}

function Bubble({ turn, number }: { turn: Turn; number: number }) {
  const { sound } = turn;
  const called = `turn ${number}`;
  return (
    <article class={turn.side ? "bubble second" : "bubble"}>
      <header>{turn.by}</header>
      <p>{turn.text}</p>
      {sound ? (
        <div class="heard">
          <PlayButton sound={sound} name={called} />
          <Wave sound={sound} name={called} />
          <Download sound={sound} name={called} file={`turn-${number}`} />
        </div>
      ) : (
        !turn.problem && <p class="quiet">…</p>
      )}
      <Problem text={turn.problem} />
    </article>
  );
}
