// The page: its head with the server's state, and one of four views.
import { signal } from "@preact/signals";
import { render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Conversation } from "./conversation";
import { Live } from "./live";
import { health, key, keyRefused, setKey, unreachable, watch } from "./server";
import { Speak } from "./speak";
import { Voices } from "./voices";

const VIEWS = { speak: Speak, conversation: Conversation, live: Live, voices: Voices };
const NAMES = {
  speak: "Speak",
  conversation: "Conversation",
  live: "Live text",
  voices: "Voices",
};
type View = keyof typeof VIEWS;

const view = signal<View>(chosen());

function chosen(): View {
  const name = location.hash.slice(1);
  return name in VIEWS ? (name as View) : "speak";
}

addEventListener("hashchange", () => (view.value = chosen()));

function Page() {
  const Shown = VIEWS[view.value];
  return (
    <>
      <header class="top">
        <h1>
          <svg viewBox="0 0 24 24" aria-hidden="true">
            <path d="M3 10v4M7.5 6v12M12 3v18M16.5 7v10M21 10v4" />
          </svg>
          vox_serve
        </h1>
        <State />
        <Key />
        <nav aria-label="Views">
          {(Object.keys(VIEWS) as View[]).map((name) => (
            <a key={name} href={`#${name}`} aria-current={name === view.value ? "page" : undefined}>
              {NAMES[name]}
            </a>
          ))}
          <a href="docs">API</a>
        </nav>
      </header>
      <main>
        <Shown />
      </main>
    </>
  );
}

/** How the server is, and how busy. */
function State() {
  const found = health.value;
  const models = found?.models ?? [];
  const sum = (field: "running" | "waiting" | "slots") =>
    models.reduce((total, one) => total + one[field], 0);
  const words = found
    ? `${found.status}, ${sum("running")} of ${sum("slots")} speaking, ${sum("waiting")} waiting`
    : unreachable.value || "connecting …";
  return (
    <details class="state">
      <summary data-status={found?.status ?? "dead"}>{words}</summary>
      <div class="pop">
        <table>
          <thead>
            <tr><th>Model</th><th>State</th><th>Speaking</th><th>Waiting</th></tr>
          </thead>
          <tbody>
            {models.map((one) => (
              <tr key={one.model}>
                <td>{one.model}</td>
                <td>{one.reason ?? one.status}</td>
                <td>{one.running} of {one.slots}</td>
                <td>{one.waiting}</td>
              </tr>
            ))}
          </tbody>
        </table>
        {[
          ...Object.entries(found?.broken_plugins ?? {}),
          ...Object.entries(found?.broken_voices ?? {}),
        ].map(([name, reason]) => <p key={name} class="problem">{name}: {reason}</p>)}
      </div>
    </details>
  );
}

/** The key that the server may want; kept until the tab is closed. */
function Key() {
  const refused = keyRefused.value;
  const box = useRef<HTMLDetailsElement>(null);
  useEffect(() => {
    if (refused) box.current!.open = true;
  }, [refused]);
  return (
    <details class="key" ref={box}>
      <summary>API key{key.value ? " ✓" : ""}</summary>
      <form
        class="pop"
        onSubmit={(event) => {
          event.preventDefault();
          setKey(String(new FormData(event.currentTarget).get("key")));
          box.current!.open = false;
        }}
      >
        <label for="key">Key, if the server wants one</label>
        <input
          id="key"
          name="key"
          type="password"
          autocomplete="off"
          aria-invalid={refused ? true : undefined}
          aria-describedby={refused ? "key-refused" : undefined}
        />
        <button class="small">Use</button>
        {refused && <p id="key-refused" class="error" role="alert">{refused}</p>}
      </form>
    </details>
  );
}

render(<Page />, document.getElementById("page")!);
watch();
