// Sound: clips from files and from the microphone, their waveforms and players. What is sent is 16 kHz mono WAV,
// or the file as it is where the server reads its format.

import { element, icon } from "/view.js";

const RATE = 16000;
export const MAX_SECONDS = 30;
const PLAY = "M8 5v14l11-7z", PAUSE = "M7 5h4v14H7zM13 5h4v14h-4z";

// What the server's decoder reads, by how a file begins.
function readableFormat(bytes) {
  const head = String.fromCharCode(...bytes.slice(0, 4));
  if (head === "RIFF") return "wav";
  if (head === "fLaC") return "flac";
  if (head === "OggS") return "ogg";
  if (head.startsWith("ID3") || (bytes[0] === 0xff && (bytes[1] & 0xe6) === 0xe2)) return "mp3";
  return null;
}

// A clip as a medium that can be sent, shown and played.
export async function clipFromFile(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const format = readableFormat(bytes);
  let wave = null;
  try {
    const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes.slice().buffer);
    wave = mono(decoded);
  } catch {
    if (!format) throw new Error(`${file.name || "the clip"}: this browser can't read it`);
  }
  return format ? clip(file.name, bytes, format, wave) : clip(file.name, wav(wave), "wav", wave);
}

function clip(name, bytes, format, wave) {
  const url = URL.createObjectURL(new Blob([bytes], { type: format === "mp3" ? "audio/mpeg" : `audio/${format}` }));
  return { kind: "sound", name: name || "clip", bytes, format, wave, url };
}

function mono(buffer) {
  const wave = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    buffer.getChannelData(channel).forEach((value, i) => { wave[i] += value / buffer.numberOfChannels; });
  }
  return wave;
}

// 16-bit mono WAV.
function wav(wave) {
  const bytes = new Uint8Array(44 + 2 * wave.length), view = new DataView(bytes.buffer);
  const text = (place, letters) => [...letters].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * wave.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true); view.setUint16(32, 2, true);
  view.setUint16(34, 16, true); text(36, "data"); view.setUint32(40, 2 * wave.length, true);
  wave.forEach((value, i) => view.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, value)) * 32767), true));
  return bytes;
}

async function resampled(wave, rate) {
  if (rate === RATE || !wave.length) return wave;
  const context = new OfflineAudioContext(1, Math.ceil(wave.length * RATE / rate), RATE);
  const source = context.createBufferSource();
  source.buffer = context.createBuffer(1, wave.length, rate);
  source.buffer.copyToChannel(wave, 0);
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

// Bars of a waveform; those before `played` (0 to 1) in full colour.
function drawBars(canvas, levels, played = 1) {
  const scale = devicePixelRatio || 1, pen = canvas.getContext("2d");
  const width = canvas.width = canvas.clientWidth * scale, height = canvas.height = canvas.clientHeight * scale;
  const step = width / levels.length, loudest = Math.max(0.02, ...levels);
  pen.fillStyle = getComputedStyle(canvas).color;
  levels.forEach((level, i) => {
    const tall = Math.max(2 * scale, level / loudest * height * 0.92);
    pen.globalAlpha = (i + 0.5) / levels.length <= played ? 1 : 0.35;
    pen.beginPath();
    pen.roundRect(i * step + step * 0.2, (height - tall) / 2, step * 0.6, tall, step * 0.3);
    pen.fill();
  });
}

function loudness(wave, bars) {
  const levels = [];
  for (let i = 0; i < bars; i++) {
    const piece = wave.subarray(Math.floor(i * wave.length / bars), Math.max(1, Math.floor((i + 1) * wave.length / bars)));
    levels.push(Math.sqrt(piece.reduce((sum, value) => sum + value * value, 0) / Math.max(1, piece.length)));
  }
  return levels;
}

export function clipPlayer(medium) {
  const audio = new Audio(medium.url);
  const seconds = medium.wave ? medium.wave.length / RATE : null;
  const time = element("span", { class: "time" }, seconds ? `${seconds.toFixed(1)} s` : "");
  const canvas = element("canvas", { "aria-hidden": "true" });
  const levels = medium.wave ? loudness(medium.wave, 48) : [];
  const label = `${medium.name}${seconds ? `, ${seconds.toFixed(1)} seconds` : ""}`;
  const button = element("button", { type: "button", "aria-label": `Play ${label}`, onclick: () => {
    if (audio.paused) audio.play().catch(() => { time.textContent = "can't play"; });
    else audio.pause();
  } }, icon(PLAY));
  const draw = () => {
    if (levels.length && canvas.isConnected) {
      drawBars(canvas, levels, audio.paused && !audio.currentTime ? 1 : audio.currentTime / seconds);
    }
    if (!audio.paused) requestAnimationFrame(draw);
  };
  const show = (playing) => {
    button.replaceChildren(icon(playing ? PAUSE : PLAY));
    button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${label}`);
    draw();
  };
  audio.addEventListener("play", () => show(true));
  audio.addEventListener("pause", () => show(false));
  audio.addEventListener("ended", () => { audio.currentTime = 0; show(false); });
  canvas.addEventListener("click", (event) => {
    if (seconds) audio.currentTime = event.offsetX / canvas.clientWidth * seconds;
    draw();
  });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  return element("div", { class: "clip" }, button, canvas, time);
}

// Records the microphone until `stop` is called or MAX_SECONDS are full. `onlevel` gets (seconds, levels so far).
export async function record(onlevel, onfull) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext(), blocks = [], levels = [];
  let count = 0, ended = false;
  try {
    await context.audioWorklet.addModule("/recorder.js");
  } catch (problem) {
    stream.getTracks().forEach((track) => track.stop());
    throw problem;
  }
  const node = new AudioWorkletNode(context, "recorder");
  node.port.onmessage = ({ data }) => {
    if (ended) return;
    blocks.push(data);
    count += data.length;
    levels.push(Math.sqrt(data.reduce((sum, value) => sum + value * value, 0) / data.length));
    if (blocks.length % 8 === 0) onlevel(count / context.sampleRate, levels);
    if (count > (MAX_SECONDS - 0.1) * context.sampleRate) onfull();
  };
  context.createMediaStreamSource(stream).connect(node);
  return {
    async stop() {
      ended = true;
      stream.getTracks().forEach((track) => track.stop());
      await context.close();
      const wave = new Float32Array(count);
      let place = 0;
      for (const block of blocks) { wave.set(block, place); place += block.length; }
      const clear = await resampled(wave, context.sampleRate);
      return clip("your recording", wav(clear), "wav", clear);
    },
  };
}

// The last seconds of a recording, as bars that move to the left.
export function drawLevels(canvas, levels) {
  const size = 12, bars = [];
  for (let end = levels.length; end > 0 && bars.length < 60; end -= size) {
    bars.unshift(Math.max(...levels.slice(Math.max(0, end - size), end)));
  }
  while (bars.length < 60) bars.unshift(0);
  drawBars(canvas, bars);
}
