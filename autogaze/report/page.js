"use strict";
/* Draws one frame at a time: the picture from a hidden <video>, the patches from one bit a patch. */
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const masks = bytes(data.masks), maskBytes = Math.ceil(data.patches / 8);
const visits = new Uint32Array(bytes(data.visits).buffer);
const clip = $("clip"), screen = $("screen"), scrubber = $("scrubber");
const VIEWS = [["patches", "patches"], ["seen", "looked at"], ["video", "video"]];
if (data.rebuilt) VIEWS.splice(2, 0, ["rebuilt", "reconstruction"]);
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const NOT_LOOKED_AT = "rgb(38, 38, 38)";
const state = { frame: 0, view: "patches", on: data.scales.map(() => true), ready: false };
const counts = data.scales.map((scale) => Array.from({ length: data.frames }, (_, t) => chosenOf(scale, t).length));

function isChosen(frame, id) { return (masks[frame * maskBytes + (id >> 3)] >> (id & 7)) & 1; }

function chosenOf(scale, frame) {
  const found = [], stop = scale.first + scale.rows * scale.columns;
  for (let id = scale.first; id < stop; id++) if (isChosen(frame, id)) found.push(id - scale.first);
  return found;
}

function box(scale, index) { /* left, top, width, height on the screen, cut to it */
  const x = screen.width / data.width, y = screen.height / data.height;
  const left = (index % scale.columns) * scale.cell, top = Math.floor(index / scale.columns) * scale.cell;
  const right = Math.min(left + scale.cell, data.width), bottom = Math.min(top + scale.cell, data.height);
  return [left * x, top * y, (right - left) * x, (bottom - top) * y];
}

function rgb(colour, alpha) { return `rgba(${colour.join(", ")}, ${alpha})`; }

function drawScreen() {
  const pen = screen.getContext("2d");
  if (state.view === "seen") {
    pen.fillStyle = NOT_LOOKED_AT;
    pen.fillRect(0, 0, screen.width, screen.height);
    eachScale((scale) => drawSeen(pen, scale));
  } else {
    drawPicture(pen, screen, state.view === "rebuilt");
    if (state.view === "patches") {
      pen.fillStyle = "rgba(20, 20, 20, 0.5)";
      pen.fillRect(0, 0, screen.width, screen.height);
      eachScale((scale) => drawPatches(pen, scale));
    }
  }
}

function drawPicture(pen, canvas, rebuilt) { /* with a reconstructor the clip holds two pictures side by side */
  if (!state.ready) return;
  const width = clip.videoWidth / (data.rebuilt ? 2 : 1);
  pen.drawImage(clip, rebuilt ? width : 0, 0, width, clip.videoHeight, 0, 0, canvas.width, canvas.height);
}

function eachScale(draw) { data.scales.forEach((scale, k) => { if (state.on[k]) draw(scale); }); }

function drawPatches(pen, scale) {
  const outlined = scale.cell * screen.width / data.width >= 6;
  pen.lineWidth = Math.max(1, screen.width / 500);
  pen.strokeStyle = rgb(scale.colour, 0.95);
  pen.fillStyle = rgb(scale.colour, outlined ? 0.22 : 0.6);
  const inset = pen.lineWidth / 2;
  for (const index of chosenOf(scale, state.frame)) {
    const [left, top, width, height] = box(scale, index);
    pen.fillRect(left, top, width, height);
    if (outlined) pen.strokeRect(left + inset, top + inset, width - 2 * inset, height - 2 * inset);
  }
}

const small = document.createElement("canvas");
function drawSeen(pen, scale) { /* the picture at the sharpness of this scale, only where a patch was chosen */
  const chosen = chosenOf(scale, state.frame);
  if (!chosen.length || !state.ready) return;
  const share = scale.px / data.scales[data.scales.length - 1].px;
  small.width = Math.max(1, Math.round(data.width * share));
  small.height = Math.max(1, Math.round(data.height * share));
  const brush = small.getContext("2d");
  brush.imageSmoothingQuality = pen.imageSmoothingQuality = "high";
  drawPicture(brush, small, false);
  pen.save();
  pen.beginPath();
  for (const index of chosen) pen.rect(...box(scale, index));
  pen.clip();
  pen.drawImage(small, 0, 0, screen.width, screen.height);
  pen.restore();
}

function paper(canvas) { /* a drawing surface in CSS pixels, sharp on every screen */
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const ink = { ink: style.getPropertyValue("--ink"), faint: style.getPropertyValue("--faint") };
  pen.font = "11px system-ui, sans-serif";
  return { pen, width, height, ...ink };
}

const MARGIN = { left: 38, right: 8, top: 8, bottom: 18 };
function axes(plot, top) { /* maps of frame and value to pixels, with a labelled frame around */
  const { pen, width, height, faint } = plot;
  const x = (t) => MARGIN.left + (width - MARGIN.left - MARGIN.right) * (t / Math.max(1, data.frames));
  const y = (v) => height - MARGIN.bottom - (height - MARGIN.top - MARGIN.bottom) * (v / top);
  pen.fillStyle = faint;
  pen.textAlign = "right";
  for (const value of [0, top / 2, top]) pen.fillText(String(Number(value.toPrecision(2))), MARGIN.left - 5, y(value) + 4);
  pen.textAlign = "left";
  pen.fillText(`${data.times[0].toFixed(1)} s`, MARGIN.left, height - 4);
  pen.textAlign = "right";
  pen.fillText(`${data.times[data.frames - 1].toFixed(1)} s`, width - MARGIN.right, height - 4);
  return { x, y };
}

function cursor(plot, x) {
  plot.pen.fillStyle = plot.ink;
  plot.pen.fillRect((x(state.frame) + x(state.frame + 1)) / 2 - 0.75, MARGIN.top, 1.5, plot.height - MARGIN.top - MARGIN.bottom);
}

function drawPatchPlot() {
  const plot = paper($("patches"));
  const totals = Array.from({ length: data.frames }, (_, t) => counts.reduce((sum, scale, k) => sum + (state.on[k] ? scale[t] : 0), 0));
  const { x, y } = axes(plot, Math.max(1, ...totals));
  const below = new Array(data.frames).fill(0);
  data.scales.forEach((scale, k) => {
    if (!state.on[k]) return;
    plot.pen.fillStyle = rgb(scale.colour, 1);
    for (let t = 0; t < data.frames; t++) {
      const top = below[t] + counts[k][t];
      plot.pen.fillRect(x(t), y(top), Math.max(1, x(t + 1) - x(t)), y(below[t]) - y(top));
      below[t] = top;
    }
  });
  cursor(plot, x);
}

function drawLossPlot() {
  const known = data.loss.concat(data.true_loss).filter((v) => v !== null);
  const asked = data.summary.model.task_loss_requirement;
  $("loss-figure").hidden = !known.length;
  if (!known.length) return;
  const words = [data.true_loss.length ? "orange: what it really was" : "", asked === null ? "" : `dashed: ${asked} was asked for`];
  $("asked").textContent = words.filter(Boolean).map((word) => `; ${word}`).join("");
  const plot = paper($("loss"));
  const { x, y } = axes(plot, Math.max(asked || 0, ...known) * 1.05 || 1);
  const pen = plot.pen;
  pen.lineWidth = 1.5;
  drawLine(pen, data.true_loss, rgb(data.scales[0].colour, 1), x, y);
  drawLine(pen, data.loss, plot.ink, x, y);
  if (asked !== null) {
    pen.setLineDash([5, 4]);
    pen.strokeStyle = plot.faint;
    pen.beginPath();
    pen.moveTo(x(0), y(asked));
    pen.lineTo(x(data.frames), y(asked));
    pen.stroke();
    pen.setLineDash([]);
  }
  cursor(plot, x);
}

function drawLine(pen, values, colour, x, y) { /* with gaps where a value is not known */
  pen.strokeStyle = colour;
  pen.beginPath();
  let drawing = false;
  values.forEach((value, t) => {
    if (value === null) { drawing = false; return; }
    const at = [(x(t) + x(t + 1)) / 2, y(Math.max(0, value))];
    if (drawing) pen.lineTo(...at); else { pen.moveTo(...at); pen.lineTo(at[0] + 0.5, at[1]); }
    drawing = true;
  });
  pen.stroke();
}

function heatColour(share) { /* viridis: as bright as the share is large, for colour-blind people too */
  const at = share * (VIRIDIS.length - 1), k = Math.min(VIRIDIS.length - 2, Math.floor(at));
  return VIRIDIS[k].map((low, channel) => Math.round(low + (VIRIDIS[k + 1][channel] - low) * (at - k)));
}

function drawMap() {
  const canvas = $("map"), fine = data.scales[data.scales.length - 1];
  canvas.style.aspectRatio = `${data.summary.video.width} / ${data.summary.video.height}`;
  const heat = new Float32Array(fine.rows * fine.columns);
  data.scales.forEach((scale, k) => {
    if (!state.on[k]) return;
    for (let cell = 0; cell < heat.length; cell++) {
      const column = Math.min(scale.columns - 1, Math.floor(((cell % fine.columns) + 0.5) * fine.cell / scale.cell));
      const row = Math.min(scale.rows - 1, Math.floor((Math.floor(cell / fine.columns) + 0.5) * fine.cell / scale.cell));
      heat[cell] += visits[scale.first + row * scale.columns + column] / data.all_frames;
    }
  });
  const most = heat.reduce((a, b) => Math.max(a, b), 0);
  $("most").textContent = most ? `; brightest: ${most.toFixed(2)}` : "";
  const { pen, width, height } = paper(canvas);
  const x = width / data.width, y = height / data.height;
  heat.forEach((value, cell) => {
    const share = most ? value / most : 0;
    pen.fillStyle = rgb(heatColour(share), 1);
    const left = (cell % fine.columns) * fine.cell * x, top = Math.floor(cell / fine.columns) * fine.cell * y;
    pen.fillRect(left, top, fine.cell * x + 0.5, fine.cell * y + 0.5);
  });
}

function drawPlots() { drawPatchPlot(); drawLossPlot(); }
function drawAll() { drawScreen(); drawPlots(); drawMap(); tell(); }

function tell() {
  const total = counts.reduce((sum, scale) => sum + scale[state.frame], 0);
  scrubber.value = String(state.frame);
  $("place").value = `frame ${state.frame * data.stride} · ${data.times[state.frame].toFixed(2)} s · ${total} of ${data.patches}`;
}

function show(frame) {
  state.frame = Math.max(0, Math.min(data.frames - 1, frame));
  if (state.ready) clip.currentTime = (state.frame + 0.5) / data.fps; /* its "seeked" draws the picture */
  drawAll();
}

function follow(_, frame) { /* while playing: the frame that is on the screen */
  const time = frame ? frame.mediaTime : clip.currentTime;
  state.frame = Math.max(0, Math.min(data.frames - 1, Math.round(time * data.fps - (frame ? 0 : 0.5))));
  drawScreen();
  drawPlots();
  tell();
  if (!clip.paused) nextFrame();
}
function nextFrame() { if (clip.requestVideoFrameCallback) clip.requestVideoFrameCallback(follow); else requestAnimationFrame(() => follow()); }

function play() {
  if (!state.ready) return;
  if (!clip.paused) { clip.pause(); return; }
  if (state.frame >= data.frames - 1) clip.currentTime = 0;
  clip.play();
  nextFrame();
}

function playing(on) {
  $("play").setAttribute("aria-pressed", String(on));
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
  $("play").textContent = on ? "❚❚ pause" : "▶ play";
}

function button(parent, label, pressed, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(label);
  made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", act);
  parent.append(made);
  return made;
}

const viewButtons = VIEWS.map(([name, label]) => button($("views"), label, name === state.view, () => setView(name)));
function setView(name) {
  state.view = name;
  VIEWS.forEach(([other], k) => viewButtons[k].setAttribute("aria-pressed", String(other === name)));
  drawScreen();
}

const scaleButtons = data.scales.map((scale, k) => {
  const made = button($("scales"), `${scale.px} px`, true, () => switchScale(k));
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = rgb(scale.colour, 1);
  made.prepend(swatch);
  return made;
});
function switchScale(k) {
  if (k >= state.on.length) return;
  state.on[k] = !state.on[k];
  scaleButtons[k].setAttribute("aria-pressed", String(state.on[k]));
  drawAll();
}

function setTheme(name) { document.documentElement.dataset.theme = name; drawPlots(); drawMap(); }
function otherTheme() { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); }

function facts() {
  const { summary } = data, { video, model } = summary;
  const percent = (share) => `${(share * 100).toFixed(1)} %`;
  const rows = [
    ["video", `${video.width} × ${video.height}, ${Number(video.fps.toFixed(2))} fps`],
    ["frames", data.stride > 1 ? `${data.all_frames} (every ${data.stride}. shown)` : String(data.all_frames)],
    ["patches a frame", `${(summary.patches / summary.frames).toFixed(1)} of ${data.patches}`],
    ["looked at", percent(summary.ratio)],
    ["largest share asked", percent(model.gazing_ratio)],
    ["loss asked", model.task_loss_requirement === null ? "none" : String(model.task_loss_requirement)],
    ["gazing took", `${summary.seconds.gaze.toFixed(1)} s on ${model.device}`],
  ];
  for (const [name, value] of rows) {
    const row = document.createElement("div"), term = document.createElement("dt"), fact = document.createElement("dd");
    term.textContent = name;
    fact.textContent = value;
    row.append(term, fact);
    $("facts").append(row);
  }
}

function savings() { /* what a ViT saves at this ratio, where measurements came with the package */
  if (!data.savings.length) return;
  const figure = $("savings"), table = figure.querySelector("table");
  figure.hidden = false;
  figure.querySelector("figcaption").textContent =
    `What a ViT saves: ms for 16 frames of 224 px, one clip at a time (batch 1), measured on ${data.savings[0].device}, at this share of patches`;
  const row = (tag, cells) => {
    const made = table.insertRow();
    for (const text of cells) made.appendChild(document.createElement(tag)).textContent = text;
  };
  row("th", ["ViT", "dense", "gaze", "encode", "times faster"]);
  for (const { vit, dense, gaze, encode } of data.savings) {
    row("td", [vit, ...[dense, gaze, encode].map((ms) => ms.toFixed(1)), (dense / (gaze + encode)).toFixed(2)]);
  }
}

function seekOn(canvas) {
  const seek = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const inside = canvas.clientWidth - MARGIN.left - MARGIN.right;
    show(Math.floor((event.offsetX - MARGIN.left) / inside * data.frames));
  };
  canvas.addEventListener("pointerdown", seek);
  canvas.addEventListener("pointermove", seek);
}

const KEYS = { " ": play, ArrowLeft: () => show(state.frame - 1), ArrowRight: () => show(state.frame + 1), Home: () => show(0),
  End: () => show(data.frames - 1), v: () => setView(VIEWS[(VIEWS.findIndex(([name]) => name === state.view) + 1) % VIEWS.length][0]),
  d: otherTheme };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.tagName === "BUTTON") return; /* space presses the button that has the focus */
  const act = KEYS[event.key] || (/^[1-9]$/.test(event.key) ? () => switchScale(Number(event.key) - 1) : null);
  if (!act) return;
  event.preventDefault();
  act();
});

clip.addEventListener("loadeddata", () => { state.ready = true; screen.dataset.ready = "yes"; show(state.frame); });
clip.addEventListener("seeked", drawScreen);
clip.addEventListener("play", () => playing(true));
clip.addEventListener("pause", () => { playing(false); });
clip.addEventListener("ended", () => { playing(false); });
clip.addEventListener("error", () => {
  $("trouble").hidden = false;
  $("trouble").textContent = "This browser cannot decode the embedded H.264 video: patches and plots are shown without it.";
});
scrubber.addEventListener("input", () => { clip.pause(); show(Number(scrubber.value)); });
$("play").addEventListener("click", play);
$("back").addEventListener("click", () => { clip.pause(); show(state.frame - 1); });
$("forward").addEventListener("click", () => { clip.pause(); show(state.frame + 1); });
$("theme").addEventListener("click", otherTheme);
seekOn($("patches"));
seekOn($("loss"));
window.addEventListener("resize", () => { drawPlots(); drawMap(); });

const factor = Math.min(1280 / data.summary.video.width, 1280 / data.summary.video.height);
screen.width = Math.max(2, Math.round(data.summary.video.width * factor));
screen.height = Math.max(2, Math.round(data.summary.video.height * factor));
scrubber.max = String(data.frames - 1);
facts();
savings();
setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
drawAll();
clip.src = URL.createObjectURL(new Blob([bytes($("clip-data").textContent)], { type: "video/mp4" }));
