// Runs the script of a page in a small stand-in for a browser and prints what a reader would see, as JSON.
const fs = require("fs");
const html = fs.readFileSync(process.argv[2], "utf8"), pattern = process.argv[3];
class Element {
  constructor() { this.children = []; this.style = {}; this.value = ""; this.listeners = {}; this.hidden = false; }
  setAttribute() {}
  appendChild(child) { this.children.push(child); return child; }
  addEventListener(name, listener) { (this.listeners[name] = this.listeners[name] || []).push(listener); }
  replaceChildren(...children) { this.children = children; }
  insertRow() { return this.appendChild(new Element()); }
  insertCell() { return this.appendChild(new Element()); }
  add(option) { this.children.push(option); if (this.value === "") this.value = String(option.value); }
}
const known = {};
for (const match of html.matchAll(/id="(\w+)"/g)) known[match[1]] = new Element();
known.range.value = "0";
known.kind.value = "recall";
global.document = {
  getElementById: id => { if (!known[id]) throw Error("no element " + id); return known[id]; },
  createElement: () => new Element(),
  createElementNS: () => new Element(),
};
global.Option = class { constructor(text, value) { this.text = text; this.value = value; } };
global.innerWidth = global.innerHeight = 1000;
eval(html.split("<script>")[1].split("</script>")[0]);
const hovered = element => { element.listeners.mousemove[0]({ clientX: 1, clientY: 1 }); return known.tip.textContent; };
const cell = () => known.map.children[0].children.find(child => child.listeners.mousemove);
const seen = { title: known.title.textContent, about: known.about.textContent, cell: hovered(cell()) };
seen.rows = known.layers.children[0].children.length;
known.pattern.value = pattern;
known.range.value = "2";
known.pattern.listeners.input[0]();
seen.where = known.where.textContent;
seen.verdict = known.verdict.textContent;
known.kind.value = "overlap";
known.kind.listeners.input[0]();
seen.common = hovered(cell());
known.pattern.value = "FX";
known.pattern.listeners.input[0]();
seen.refused = known.verdict.textContent;
if (!known.explain.hidden) {
  seen.answer = known.answer.textContent;
  seen.words = known.text.children.length;
  seen.word = hovered(known.text.children[1]);
}
console.log(JSON.stringify(seen));
