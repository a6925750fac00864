// Fields of forms, each with its error.
import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";
import { models, voices, type Refusal } from "./server";
import type { Fields } from "./generate";

export interface Attributes {
  id: string;
  "aria-invalid": boolean | undefined;
  "aria-describedby": string | undefined;
}

/** A labelled field; what is wrong with it stands below it. */
export function Field(props: {
  label: string;
  hint?: string;
  error?: string;
  class?: string;
  children: (attributes: Attributes) => ComponentChildren;
}) {
  const id = useId();
  const { label, hint, error } = props;
  const attributes = {
    id,
    "aria-invalid": error ? true : undefined,
    "aria-describedby": hint || error ? `${id}-more` : undefined,
  };
  return (
    <div class={`field ${props.class ?? ""}`}>
      <label for={id}>{label}</label>
      {props.children(attributes)}
      {(hint || error) && (
        <small id={`${id}-more`}>
          {error ? <span class="error" role="alert">{error}</span> : hint}
        </small>
      )}
    </div>
  );
}

export function Choice(props: {
  label: string;
  value: string;
  options: (string | [value: string, shown: string])[];
  error?: string;
  disabled?: boolean;
  onChange: (value: string) => void;
}) {
  return (
    <Field label={props.label} error={props.error}>
      {(attributes) => (
        <select
          {...attributes}
          value={props.value}
          disabled={props.disabled}
          onChange={(event) => props.onChange(event.currentTarget.value)}
        >
          {props.options.map((one) => {
            const [value, shown] = typeof one === "string" ? [one, one] : one;
            return <option key={value} value={value} selected={value === props.value}>{shown}</option>;
          })}
        </select>
      )}
    </Field>
  );
}

/** Model, voice and speaker. */
export interface Who {
  model: string;
  voice: string;
  speaker: string;
}

export const NOBODY: Who = { model: "", voice: "", speaker: "" };

/** The fields of a request that say who speaks. */
export function whoFields(who: Who): Fields {
  return {
    model: models.value.length > 1 ? modelOf(who)?.name : undefined,
    voice: who.voice || undefined,
    speaker: who.voice ? undefined : Number(who.speaker || 0),
  };
}

export function modelOf(who: Who) {
  return models.value.find((one) => one.name === who.model) ?? models.value[0];
}

/** The error of a field, if that is the one at fault. */
export function errorOf(refusal: Refusal | null, ...params: string[]): string | undefined {
  return refusal?.param && params.includes(refusal.param) ? refusal.message : undefined;
}

/** Voices of a model, its own and registered ones. */
export function voicesOf(model: string | undefined) {
  return voices.value.filter((one) => one.model === model);
}

export function WhoFields(props: {
  who: Who;
  refusal: Refusal | null;
  onChange: (who: Who) => void;
}) {
  const { who, refusal, onChange } = props;
  const model = modelOf(who);
  const named = voicesOf(model?.name);
  const speakers = [...new Set(model?.voices.map((one) => String(one.speaker)))].sort();
  return (
    <>
      <ModelChoice who={who} refusal={refusal} onChange={onChange} />
      <Choice
        label="Voice"
        value={who.voice}
        error={errorOf(refusal, "voice")}
        options={[
          ["", "by speaker"],
          ...named.map((one): [string, string] => [
            one.name,
            one.text === undefined ? one.name : `${one.name} (registered)`,
          ]),
        ]}
        onChange={(voice) => onChange({ ...who, voice })}
      />
      <Choice
        label="Speaker"
        value={who.voice ? "" : who.speaker || speakers[0] || "0"}
        error={errorOf(refusal, "speaker")}
        disabled={!!who.voice}
        options={who.voice ? [["", "the voice's"]] : speakers}
        onChange={(speaker) => onChange({ ...who, speaker })}
      />
    </>
  );
}

export function ModelChoice(props: {
  who: Who;
  refusal: Refusal | null;
  onChange: (who: Who) => void;
}) {
  const { who, refusal, onChange } = props;
  return (
    <Choice
      label="Model"
      value={modelOf(who)?.name ?? ""}
      error={errorOf(refusal, "model")}
      options={models.value.map((one) => one.name)}
      onChange={(name) => onChange({ ...NOBODY, model: name })}
    />
  );
}

/** An error that belongs to no field. */
export function Problem({ text }: { text: string | undefined }) {
  return text ? <p class="problem" role="alert">{text}</p> : null;
}
