// The files that a sound can be saved as.
import { useState } from "preact/hooks";
import { save } from "./generate";
import { formats, inWords } from "./server";
import type { Sound } from "./sound";

interface Of {
  sound: Sound;
  /** As it is called on the page. */
  name: string;
  /** The file's name without its ending. */
  file: string;
  /** Have the server make the sound anew in a format. */
  remake?: (format: string) => Promise<Blob>;
}

/** wav and pcm are what was heard.  The others are made anew, if the request can be repeated. */
export function Download({ sound, name, file, remake }: Of) {
  const [chosen, choose] = useState("wav");
  const [problem, setProblem] = useState("");
  const heard: Record<string, () => Blob> = { wav: () => sound.wav(), pcm: () => sound.pcm() };
  const offered = remake && sound.whole ? formats.value : Object.keys(heard);
  const download = async () => {
    setProblem("");
    try {
      save(heard[chosen]?.() ?? (await remake!(chosen)), `${file}.${chosen}`);
    } catch (error) {
      setProblem(inWords(error));
    }
  };
  return (
    <span class="download">
      <select
        aria-label={`Format of ${name}`}
        value={chosen}
        onChange={(event) => choose(event.currentTarget.value)}
      >
        {offered.map((one) => <option key={one}>{one}</option>)}
      </select>
      <button type="button" class="small" aria-label={`Download ${name}`} onClick={() => void download()}>
        Download
      </button>
      {problem && <span class="error" role="alert">{problem}</span>}
    </span>
  );
}
