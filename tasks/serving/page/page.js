"use strict";

const FRAME_MS = 120;
const find = (id) => document.getElementById(id);
const [puzzle, board, step, status, error] = ["puzzle", "board", "step", "status", "error"].map(find);
let model = null; // what /health says of it
let shown = null; // the trajectory on the board
let timer = null;

function say(text, isError = false) {
  status.textContent = isError ? "" : text;
  status.className = "";
  error.textContent = isError ? text : "";
  error.hidden = !isError;
}

// A thick line stands between cells that are neighbours but in different boxes.
function makeBoard(side, units) {
  const box = units[2];
  const differs = (one, other) => box !== undefined && box[one] !== box[other];
  board.style.gridTemplate = `repeat(${side}, 1fr) / repeat(${side}, 1fr)`;
  board.style.fontSize = `${Math.min(1.5, 14 / side)}rem`;
  board.replaceChildren();
  for (let cell = 0; cell < side * side; cell++) {
    const span = document.createElement("span");
    const inRow = (cell + 1) % side !== 0;
    if (inRow && differs(cell, cell + 1)) span.classList.add("right");
    if (cell + side < side * side && differs(cell, cell + side)) span.classList.add("below");
    board.append(span);
  }
}

function draw(symbols, isGiven, confidence, before) {
  [...board.children].forEach((span, cell) => {
    const symbol = symbols[cell];
    span.textContent = symbol;
    span.dataset.symbol = symbol;
    span.style.opacity = isGiven(cell) ? 1 : 0.2 + 0.08 * (Number(confidence[cell]) + 1);
    span.classList.toggle("given", isGiven(cell));
    span.classList.toggle("changed", before[cell] !== symbol);
  });
}

function show(number) {
  const { question, frames } = shown;
  const frame = frames[number];
  const before = number > 0 ? frames[number - 1].cells : frame.cells;
  draw(frame.cells, (cell) => question[cell] === frame.cells[cell], frame.confidence, before);
  step.value = number;
  const at = frames.length > 1 ? (100 * number) / (frames.length - 1) : 0;
  find("now").setAttribute("x1", at);
  find("now").setAttribute("x2", at);
  const residual = frame.residual === null ? "not finite" : frame.residual.toExponential(1);
  const last = number === frames.length - 1;
  say(`Step ${number} of ${frames.length - 1}, residual ${residual}. ${last ? verdict() : ""}`);
  status.classList.toggle("solved", last && shown.valid);
}

function verdict() {
  const converged = shown.converged ? "converged" : "not converged";
  return `${shown.valid ? "Valid" : "Not valid"}, ${converged} after ${shown.steps} steps.`;
}

// The residuals of all steps, the largest on top; what is not finite stands there too.
function drawCurve(frames) {
  const logs = frames.map((frame) => (frame.residual > 0 ? Math.log10(frame.residual) : null));
  const finite = logs.filter((log) => log !== null);
  const [low, high] = [Math.min(...finite, 0), Math.max(...finite, 0)];
  const points = logs.map((log, number) => {
    const height = log === null ? 1 : (log - low) / (high - low || 1);
    return `${(100 * number) / Math.max(logs.length - 1, 1)},${29 - 28 * height}`;
  });
  find("curve").setAttribute("points", points.join(" "));
}

function play(number) {
  clearTimeout(timer);
  show(number);
  if (number + 1 < shown.frames.length) timer = setTimeout(play, FRAME_MS, number + 1);
}

async function solve(event) {
  event.preventDefault();
  clearTimeout(timer);
  say("Solving ...");
  find("solve").disabled = true;
  try {
    const reply = await fetch("/trajectory", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ puzzle: puzzle.value }),
    });
    const body = await reply.json();
    if (!reply.ok) return say(body.error, true);
    shown = body;
    step.max = body.frames.length - 1;
    find("player").hidden = false;
    drawCurve(body.frames);
    play(0);
  } catch (failure) {
    say(`The service does not answer: ${failure.message}`, true);
  } finally {
    find("solve").disabled = false;
  }
}

function clear() {
  clearTimeout(timer);
  find("player").hidden = true;
  puzzle.value = "";
  draw(" ".repeat(board.children.length), () => true, "", " ".repeat(board.children.length));
  [...board.children].forEach((span) => span.classList.remove("given"));
  say("");
  puzzle.focus();
}

function example() {
  const rows = model.example.match(new RegExp(`.{${model.side}}`, "g"));
  clear();
  puzzle.value = rows.join("\n");
}

async function start() {
  try {
    model = await (await fetch("/health")).json();
    makeBoard(model.side, model.units);
    puzzle.rows = Math.min(model.side, 30);
    find("model").textContent =
      `A model of ${model.task}, ${model.side} × ${model.side}, with at most ${model.max_steps} steps.`;
  } catch (failure) {
    say(`The service does not answer: ${failure.message}`, true);
  }
}

find("form").addEventListener("submit", solve);
find("example").addEventListener("click", () => model && example());
find("clear").addEventListener("click", clear);
find("play").addEventListener("click", () => shown && play(0));
step.addEventListener("input", () => {
  clearTimeout(timer);
  show(Number(step.value));
});
start();
