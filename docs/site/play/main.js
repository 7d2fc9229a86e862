// The page: what is drawn -> names, evidence, neighbours, and a probe of one's own.
import { decoded, inverted, isBlank, onCanvas, overlay, paper, pixelsOf } from "./canvas.js";
import { load } from "./model.js";
import { fitted } from "./probe.js";

const MOST_CLASSES = 4;
const at = (id) => document.getElementById(`play-${id}`);
const say = (sentence) => (at("status").textContent = sentence);
const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

let model, sheet, drawing;
const classes = []; // of one's own: {name, examples: [{features, pixels}]}
let probe = null;

export async function start() {
  at("app").hidden = false;
  drawing = at("drawing");
  sheet = paper(drawing, () => (Number(at("stroke").value) / 100) * drawing.width, changed);
  connect();
  for (const name of ["first", "second"]) addClass(name);
  model = await load().catch((error) => {
    say(`The network cannot be loaded: ${error.message}. Reload the page to try again, or build the site anew.`);
    at("app").inert = true;
  });
  if (!model) return;
  window.bit = { model, fitted, classify: (pixels) => model.classify(pixels) };
  at("count").textContent = model.card.classes.length;
  say("Ready: draw.");
  changed();
}

// From the paper to the answer, one at a time, and always the latest.
let wanted = false;
let busy = false;
async function changed() {
  wanted = true;
  if (busy || !model) return;
  busy = true;
  while (wanted) {
    wanted = false;
    await new Promise((resume) => setTimeout(resume));
    await answer().catch((error) => say(`This picture could not be computed (${error.message}). Draw another.`));
  }
  busy = false;
}

const seen = () => (at("invert").checked ? inverted(sheet.pixels()) : sheet.pixels());

async function answer() {
  const pixels = seen();
  const blank = isBlank(pixels);
  for (const button of document.querySelectorAll(".play-add")) button.disabled = blank;
  if (blank) return nothing();
  const start = performance.now();
  const { probabilities, features } = await model.classify(pixels);
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
  at("time").textContent = `Answered in ${(performance.now() - start).toFixed(0)} ms.`;
  list("names", order.map((index) => row(name(index), probabilities[index], glyph(index))));
  list("nearest", model.nearest(features).map(neighbour));
  const own = probe?.(model.standardized(features));
  list("own", own ? classes.map(({ name }, k) => row(name, own[k])) : []);
  speak(order, probabilities, own);
  at("evidence").hidden = !at("looks").checked;
  if (!at("looks").checked) return;
  overlay(at("evidence"), await model.evidence(pixels, order[0]));
  at("evidence-of").textContent = `Orange: what speaks for ${name(order[0])}.`;
}

function nothing() {
  for (const each of ["names", "nearest", "own"]) list(each, []);
  at("time").textContent = at("evidence-of").textContent = "";
  at("evidence").hidden = true;
  clearTimeout(speaking);
  at("spoken").textContent = "The paper is empty: draw something on it.";
}

const name = (index) => model.card.classes[index];
const list = (id, items) => at(id).replaceChildren(...items);

/** A name with its probability as a bar. */
function row(label, share, picture = "") {
  const bar = element("span", { className: "play-bar" });
  bar.style.setProperty("--share", share);
  const text = element("span", { className: "play-name", textContent: label });
  return element("li", {}, picture, text, element("span", { className: "play-share", textContent: percent(share) }), bar);
}

function neighbour({ index, cosine }) {
  const label = element("span", { className: "play-name", textContent: name(index) });
  const number = element("span", { className: "play-share", textContent: cosine.toFixed(2) });
  return element("li", {}, glyph(index), label, number);
}

/** A glyph's small picture out of the one that holds them all. */
function glyph(index) {
  const { side, columns, pictured } = model.card;
  const place = pictured.indexOf(index);
  const tile = element("span", { className: "play-glyph", ariaHidden: "true" });
  if (place < 0) return tile;
  tile.style.backgroundImage = `url(${new URL("glyphs.webp", import.meta.url)})`;
  tile.style.backgroundSize = `${columns * 100}% auto`;
  const rows = Math.ceil(pictured.length / columns);
  const share = (number, count) => (count > 1 ? (100 * number) / (count - 1) : 0);
  tile.style.backgroundPosition = `${share(place % columns, columns)}% ${share(Math.floor(place / columns), rows)}%`;
  return tile;
}

// For screen readers once the hand rests, else they would never stop.
let speaking;
function speak(order, probabilities, own) {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const mine = own ? `Of your classes: ${classes.map(({ name }, k) => `${name} ${percent(own[k])}`).join(", ")}. ` : "";
    at("spoken").textContent = `${mine}Most likely: ${name(order[0])}, ${percent(probabilities[order[0]])}.`;
  }, 400);
}

function connect() {
  at("clear").addEventListener("click", () => (sheet.clear(), changed()));
  at("example").addEventListener("click", () => example().catch((error) => say(error.message)));
  at("choose").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => (take(at("file").files[0]), (at("file").value = "")));
  for (const id of ["invert", "looks"]) at(id).addEventListener("change", changed);
  at("another").addEventListener("click", () => addClass(["third", "fourth"][classes.length - 2]));
  for (const kind of ["dragover", "drop"])
    addEventListener(kind, (event) => {
      event.preventDefault(); // else the browser would leave the page for the file
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
}

async function take(file) {
  if (!file) return say("That was no file: drop a picture from a folder.");
  say(`Reading “${file.name}” …`);
  try {
    sheet.show(await decoded(file));
    say(`“${file.name}”, as wide and as high as the network takes it. You can draw on it.`);
    changed();
  } catch (error) {
    say(error.message);
  }
}

/** Any of the glyphs that the network knows. */
async function example() {
  const { side, columns, pictured } = model.card;
  const all = element("img", { src: new URL("glyphs.webp", import.meta.url) });
  await all.decode().catch(() => {
    throw new Error("The examples cannot be shown: the file play/glyphs.webp is not there.");
  });
  const place = Math.floor(Math.random() * pictured.length);
  sheet.show(pixelsOf(all, side * (place % columns), side * Math.floor(place / columns), side, side));
  say(`An example of ${name(pictured[place])}.`);
  changed();
}

// Learn your own.

function addClass(label) {
  const own = { name: label, examples: [] };
  classes.push(own);
  const title = element("input", { value: label, maxLength: 30, ariaLabel: `Name of class ${classes.length}` });
  const add = element("button", { type: "button", className: "play-add", disabled: true });
  const forget = element("button", { type: "button", textContent: "Forget", disabled: true });
  const shown = element("span", { className: "play-examples" });
  const drawn = () => {
    add.textContent = `Add the drawing to “${own.name}”`;
    forget.ariaLabel = `Forget the examples of ${own.name}`;
    forget.disabled = !own.examples.length;
    shown.replaceChildren(...own.examples.map(({ pixels }) => thumbnail(pixels, own.name)));
    learn();
  };
  title.addEventListener("input", () => ((own.name = title.value || label), drawn()));
  add.addEventListener("click", async () => {
    const pixels = seen();
    if (isBlank(pixels)) return say("The paper is empty: draw an example first.");
    const { features } = await model.classify(pixels);
    own.examples.push({ vector: model.standardized(features), pixels });
    sheet.clear();
    drawn();
    say(`${own.name} has ${own.examples.length} example${own.examples.length > 1 ? "s" : ""}. Draw the next.`);
    drawing.scrollIntoView({ block: "nearest" });
  });
  forget.addEventListener("click", () => ((own.examples = []), drawn()));
  at("classes").append(element("li", {}, title, add, forget, shown));
  at("another").disabled = classes.length >= MOST_CLASSES;
  drawn();
}

function thumbnail(pixels, label) {
  const small = element("canvas", { width: 40, height: 40, role: "img", ariaLabel: `An example of ${label}` });
  small.getContext("2d").drawImage(onCanvas(pixels), 0, 0, 40, 40);
  return small;
}

/** Fits the probe, once two classes have examples; classes without any have no probability. */
function learn() {
  const numbers = classes.flatMap(({ examples }, k) => examples.map(() => k));
  const known = [...new Set(numbers)];
  probe = null;
  at("learnt").textContent = "Add one example or more to two classes.";
  if (known.length > 1) {
    const vectors = classes.flatMap(({ examples }) => examples.map(({ vector }) => vector));
    const start = performance.now();
    const fit = fitted(vectors, numbers.map((k) => known.indexOf(k)), known.length);
    const time = (performance.now() - start).toFixed(0);
    probe = (vector) => {
      const shares = fit(vector);
      return classes.map((_, k) => shares[known.indexOf(k)] ?? 0);
    };
    at("learnt").textContent = `Fitted to ${vectors.length} examples in ${time} ms. Draw something new: which is it?`;
  }
  changed();
}
