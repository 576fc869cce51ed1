// The conversation: what is asked, what was answered, and the requests to the server.

import { $, addAnswer, addQuestion, announce, answerFacts, element, fillAbout, mediumView, sampleButton } from "/view.js";
import { clipFromFile, drawLevels, record } from "/sound.js";
import { pictureFromFile, takePicture } from "/camera.js";
import { call, contentPart, events, reason } from "/server.js";

let about = null;
let turns = []; // {before, parts, reference, answer (null if it failed), view}
let attached = [];
let asking = null; // the AbortController of the request in progress

// ---------------------------------------------------------------- the conversation

function messages(last) {
  const found = [];
  for (const turn of turns) {
    for (const [role, parts] of turn.before) found.push({ role, content: parts.map(contentPart) });
    if (turn !== last && turn.answer === null) continue;
    found.push({ role: "user", content: turn.parts.map(contentPart) });
    if (turn !== last) found.push({ role: "assistant", content: turn.answer });
  }
  return found;
}

async function ask(parts, before = [], reference = null) {
  $("empty").hidden = true;
  for (const [role, said] of before) addQuestion([`${role}: `, ...said], true);
  addQuestion(parts);
  const turn = { before, parts, reference, answer: null };
  turn.view = addAnswer(() => !asking && turns.at(-1) === turn && answer(turn));
  turns.push(turn);
  await answer(turn);
}

async function answer(turn) {
  const controller = asking = new AbortController();
  const temperature = Number($("temperature").value);
  const body = { model: about.model, stream: true, stream_options: { include_usage: true },
    temperature, max_tokens: Number($("length").value) };
  if (temperature) body.seed = Math.floor(Math.random() * 2 ** 31);
  turn.answer = null;
  turn.view.begin(turn.reference);
  showAsking(true);
  announce("It is answering");
  let facts = [], problem = null, text = "", finish = null;
  try {
    body.messages = messages(turn);
    const response = await call("/v1/chat/completions", { method: "POST", signal: controller.signal,
      headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    if (!response.ok) throw new Error(await reason(response));
    for await (const event of events(response)) {
      const piece = event.choices[0]?.delta.content ?? "";
      finish = event.choices[0]?.finish_reason ?? finish;
      text += piece;
      if (piece) turn.view.add(piece);
      if (event.usage) facts = answerFacts(event.usage, event.timings, finish);
    }
    if (finish === null) throw new Error("the answer broke off");
    turn.answer = text;
  } catch (error) {
    if (error.name === "AbortError") {
      facts = ["stopped"];
      turn.answer = text || null;
    } else problem = `That failed: ${error.message}`;
  }
  if (asking === controller) {
    asking = null;
    showAsking(false);
  }
  if (!turns.includes(turn)) return; // a new conversation has begun
  turn.view.end(facts, problem);
  announce(problem ?? (text ? `It answered: ${text}` : "It gave an empty answer"));
}

function showAsking(busy) {
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  if (!busy && document.activeElement === document.body) $("question").focus();
}

function startOver() {
  asking?.abort();
  asking = null;
  showAsking(false);
  turns = [];
  $("log").replaceChildren();
  $("empty").hidden = false;
  setAttached([]);
  announce("A new conversation");
}

// ---------------------------------------------------------------- what is attached

function setAttached(media) {
  attached = media;
  $("tray").hidden = !media.length;
  $("tray").replaceChildren(...media.map((medium) => element("li", {}, mediumView(medium),
    element("button", { type: "button", class: "remove", "aria-label": `Remove ${medium.name}`,
      onclick: () => { setAttached(attached.filter((other) => other !== medium)); $("question").focus(); } }, "×"))));
}

function attach(medium) {
  if (!medium) return;
  setAttached([...attached, medium]);
  announce(`Attached ${medium.name}`);
  $("question").focus();
}

async function attachFiles(files) {
  for (const file of files) {
    await tried(async () => attach(await (file.type.startsWith("audio/") || file.type === "video/webm"
      ? clipFromFile(file) : pictureFromFile(file))));
  }
}

// Runs something that may fail; the reason is shown beside the question.
async function tried(work) {
  $("ask").querySelector(".problem")?.remove();
  try {
    return await work();
  } catch (error) {
    const why = error.name === "NotAllowedError" ? "the browser was not allowed to use it"
      : error.name === "NotFoundError" ? "none was found" : error.message;
    $("tray").after(element("p", { class: "problem", role: "alert" }, `That failed: ${why}`));
  }
}

// ---------------------------------------------------------------- recording: hold, or press to start and to stop

let recorder = null; // a promise of the recording in progress
let held = false, since = 0;

function pressRecord() {
  if (recorder) { stopRecording(); return; }
  held = true;
  since = performance.now();
  $("ask").querySelector(".problem")?.remove();
  recorder = record((seconds, levels) => {
    $("recording-time").textContent = `${seconds.toFixed(1)} s`;
    drawLevels($("level"), levels);
  }, stopRecording);
  recorder.then(() => {
    $("recording").hidden = false;
    $("recording-hint").textContent = held ? "release to stop" : "press again to stop";
    $("record").setAttribute("aria-pressed", "true");
    announce("Recording");
  }, (error) => { recorder = null; tried(() => { throw error; }); });
}

function releaseRecord() {
  if (!held) return;
  held = false;
  if (recorder && performance.now() - since > 400 && !$("recording").hidden) stopRecording();
  else $("recording-hint").textContent = "press again to stop";
}

async function stopRecording() {
  const running = recorder;
  recorder = null;
  held = false;
  $("record").setAttribute("aria-pressed", "false");
  await tried(async () => attach(await (await running)?.stop()));
  $("recording").hidden = true;
}

// ---------------------------------------------------------------- held-out samples

const loaded = new Map();

function sampleMedium(number, index) {
  const key = `/samples/${number}/${index}`;
  if (!loaded.has(key)) {
    loaded.set(key, call(key).then(async (response) => {
      if (!response.ok) throw new Error(await reason(response));
      const blob = await response.blob();
      const file = new File([blob], blob.type.startsWith("audio/") ? "clip" : "picture", { type: blob.type });
      return blob.type.startsWith("audio/") ? clipFromFile(file) : pictureFromFile(file);
    }));
  }
  return loaded.get(key);
}

async function askSample(number) {
  if (asking) return;
  const sample = about.samples[number];
  await tried(async () => {
    const media = await Promise.all([...Array(sample.images + sample.audios).keys()].map((i) => sampleMedium(number, i)));
    const images = media.slice(0, sample.images), audios = media.slice(sample.images);
    const parts = (text) => text.split(/(<image>|<audio>)/).filter(Boolean)
      .map((piece) => (piece === "<image>" ? images.shift() : piece === "<audio>" ? audios.shift() : piece));
    const before = sample.before.map(([role, text]) => [role, parts(text)]);
    startOver();
    showSide(false);
    await ask(parts(sample.question), before, sample.reference);
  });
}

function showSamples() {
  const sets = [...new Set(about.samples.map((sample) => sample.source))];
  const button = (sample) => {
    const number = about.samples.indexOf(sample);
    return sampleButton(sample, () => askSample(number), async () => (await sampleMedium(number, 0)).url);
  };
  const list = () => $("set-samples").replaceChildren(
    ...about.samples.filter((sample) => sample.source === $("set").value).map(button));
  $("set").replaceChildren(...sets.map((name) => element("option", { value: name }, name)));
  $("set").addEventListener("change", list);
  const pictured = sets.find((name) => about.samples.some((sample) => sample.source === name && sample.images));
  if (pictured) $("set").value = pictured;
  $("samples").hidden = $("first-samples").hidden = !sets.length;
  list();
  const ofKind = (images, audios) => about.samples.find((s) => !s.images === !images && !s.audios === !audios);
  const kinds = [ofKind(1, 0), ofKind(0, 1), ofKind(1, 1), ofKind(0, 0)].filter(Boolean);
  const first = sets.map((name) => about.samples.find((sample) => sample.source === name));
  $("first-samples").replaceChildren(...[...new Set([...kinds, ...first])].slice(0, 4).map(button));
}

// ---------------------------------------------------------------- the page's controls

function send() {
  const text = $("question").value.trim();
  if (asking || (!text && !attached.length) || !about) return;
  const parts = [...attached, ...(text ? [text] : [])];
  $("question").value = "";
  setAttached([]);
  ask(parts);
}

// On a narrow page: what is otherwise beside the conversation.
function showSide(open) {
  $("side").classList.toggle("open", open);
  $("menu").setAttribute("aria-expanded", String(open));
  $("menu").textContent = open ? "Close" : "About";
}

function showSettings() {
  const temperature = Number($("temperature").value);
  $("temperature-now").textContent = temperature ? temperature.toFixed(2) : "0, the likeliest answer";
  $("length-now").textContent = `at most ${$("length").value} tokens`;
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("stop").addEventListener("click", () => { asking?.abort(); $("question").focus(); });
$("new").addEventListener("click", () => { startOver(); $("question").focus(); });
$("menu").addEventListener("click", () => showSide($("menu").getAttribute("aria-expanded") !== "true"));
for (const id of ["temperature", "length"]) $(id).addEventListener("input", showSettings);
for (const id of ["picture", "sound"]) $(id).addEventListener("click", () => $(`${id}-file`).click());
for (const id of ["picture-file", "camera-file", "sound-file"]) {
  $(id).addEventListener("change", async () => { await attachFiles([...$(id).files]); $(id).value = ""; });
}
$("camera").addEventListener("click", () => (navigator.mediaDevices
  ? tried(async () => attach(await takePicture())) : $("camera-file").click()));

const microphone = $("record");
microphone.disabled = !navigator.mediaDevices;
if (microphone.disabled) microphone.title = "The browser offers its microphone on this machine or over https only";
microphone.addEventListener("pointerdown", (event) => { if (event.button === 0) { event.preventDefault(); pressRecord(); } });
for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, releaseRecord);
microphone.addEventListener("keydown", (event) => {
  if (event.key !== " " && event.key !== "Enter") return;
  event.preventDefault();
  if (!event.repeat) pressRecord();
});
microphone.addEventListener("keyup", (event) => { if (event.key === " " || event.key === "Enter") releaseRecord(); });
microphone.addEventListener("click", (event) => { // from a screen reader, which presses no key
  if (event.detail === 0) { pressRecord(); held = false; }
});

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) { event.preventDefault(); attachFiles([...event.clipboardData.files]); }
});
document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  attachFiles([...event.dataTransfer.files]);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && asking) asking.abort(); });

tried(async () => {
  const response = await call("/about");
  if (!response.ok) throw new Error(await reason(response));
  about = await response.json();
  $("length").max = Math.min(about.max_new_tokens, 512);
  $("length").value = about.default_length;
  fillAbout(about);
  showSamples();
  showSettings();
  $("question").focus();
});
