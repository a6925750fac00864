// POST /generate, played while it is made, and the same request for other programs.
import { BASE, key, models, post, randomSeed } from "./server";
import * as player from "./player";
import { Sound } from "./sound";

/** The fields of a request; those that are undefined are left out. */
export type Fields = Record<
  string,
  string | number | boolean | Record<string, string | number> | undefined
>;

export function sampleRate(model: string | undefined): number {
  const found = models.value.find((one) => one.name === model) ?? models.value[0];
  return found?.sample_rate ?? 24000;
}

/**
 * Speak and play.  A request without a seed gets one here, because a streamed answer does not say
 * which one the server took.
 *
 * @param begun told the sound, once there is some
 * @returns when all of it has come; it may still be playing
 * @throws Refusal, or an error in words; what had come by then stays in the sound
 */
export async function speak(
  fields: Fields,
  signal: AbortSignal,
  begun: (sound: Sound) => void,
): Promise<void> {
  player.stop();
  player.open(sampleRate(fields.model as string | undefined));
  const start = performance.now();
  const answer = await post("generate", { ...fields, streaming: true, format: "pcm" }, signal);
  const sound = new Sound(Number(answer.headers.get("X-Sample-Rate")), start);
  begun(sound);
  void player.play(sound);
  try {
    const reader = answer.body!.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      sound.add(value);
      player.pump();
    }
    sound.finish(true);
  } catch (error) {
    sound.finish(false);
    if (signal.aborted) throw error;
    throw new Error("The audio stopped early: the model or the connection failed.");
  } finally {
    player.pump();
  }
}

export function withSeed(fields: Fields): Fields {
  return { ...fields, seed: fields.seed ?? randomSeed() };
}

/** The request as programs; each saves the sound. */
export const programs: Record<string, (fields: Fields) => string> = {
  curl(fields) {
    const quoted = (text: string) => `'${text.replaceAll("'", `'\\''`)}'`;
    const lines = [
      `curl -sS --fail-with-body ${quoted(address())}`,
      `-H 'Content-Type: application/json'`,
      ...(key.value ? ['-H "Authorization: Bearer $VOX_SERVE_KEY"'] : []),
      `-d ${quoted(JSON.stringify(fields))}`,
      `-o ${file(fields)}`,
    ];
    return lines.join(" \\\n  ");
  },
  Python(fields) {
    const value = (one: unknown) =>
      typeof one === "boolean" ? (one ? "True" : "False") : JSON.stringify(one);
    const body = Object.entries(JSON.parse(JSON.stringify(fields)))
      .map(([name, one]) => `    ${JSON.stringify(name)}: ${value(one)},\n`)
      .join("");
    return `${key.value ? "import os\n\n" : ""}import requests

body = {
${body}}
response = requests.post(
    ${JSON.stringify(address())},
    json=body,${key.value ? '\n    headers={"Authorization": f"Bearer {os.environ[\'VOX_SERVE_KEY\']}"},' : ""}
    stream=True,
)
response.raise_for_status()
with open("${file(fields)}", "wb") as output:
    for chunk in response.iter_content(chunk_size=None):
        output.write(chunk)  # sound, while the rest is being made
`;
  },
  JavaScript(fields) {
    const authorized = key.value
      ? ",\n    Authorization: `Bearer ${process.env.VOX_SERVE_KEY}`"
      : "";
    return `// Node 20 or newer, as an ES module
import { createWriteStream } from "node:fs";

const response = await fetch(${JSON.stringify(address())}, {
  method: "POST",
  headers: {
    "Content-Type": "application/json"${authorized},
  },
  body: JSON.stringify(${JSON.stringify(fields, null, 2).replaceAll("\n", "\n  ")}),
});
if (!response.ok) throw new Error(await response.text());
const output = createWriteStream("${file(fields)}");
for await (const chunk of response.body) output.write(chunk); // while the rest is being made
output.end();
`;
  },
};

const address = () => new URL("generate", BASE).href;
const file = (fields: Fields) => `output.${fields.format}`;

/** Offer a file to the person. */
export function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the download may begin later
}
