// As much of a browser as docs.html needs.  Presses every button, then prints what came of it.
const fs = require("fs");
const texts = [], values = [], sent = [], played = [], buttons = [];
class Node {
  constructor(tag) { this.tag = tag; this.children = []; this.files = []; }
  append(...children) {
    this.children.push(...children);
    texts.push(...children.filter((child) => !(child instanceof Node)).map(String));
    if (this.tag === "button") buttons.push(this);
  }
  replaceChildren(...children) { this.children = []; this.append(...children); }
  querySelectorAll(tag) {
    return this.children.flatMap((child) => child instanceof Node
      ? [...(child.tag === tag ? [child] : []), ...child.querySelectorAll(tag)] : []);
  }
  set src(address) { played.push(address); }
  set value(text) { values.push(String(text)); this.text = text; }
  get value() { return this.text || ""; }
}
const root = new Node("main");
globalThis.document = { createElement: (tag) => new Node(tag), querySelector: () => root };
URL.createObjectURL = () => "blob:1";
globalThis.fetch = async (url, options = {}) => {
  if (url === "openapi.json") return { json: async () => JSON.parse(fs.readFileSync(url)) };
  const { method, body } = options;
  sent.push({ url, method, body });
  return new Response(method === "POST" ? "RIFF" : "{}", {
    headers: { "content-type": method === "POST" ? "audio/wav" : "application/json" },
  });
};
let pressed = false;
process.on("beforeExit", () => {  // nothing is left to wait for
  if (pressed) return fs.writeFileSync("shown.json", JSON.stringify({ texts, values, sent, played }));
  pressed = true;
  for (const button of buttons) button.onclick();
  setImmediate(() => {});  // so that it is asked again
});
