"use strict";

const FRAME_MS = 120;
const find = (id) => document.getElementById(id);
const [form, puzzle, board, step, status] = ["form", "puzzle", "board", "step", "status"].map(find);
let model = null; // what /health says of it
let shown = null; // the trajectory on the board
let timer = null;

function say(text, isError = false) {
  status.textContent = text;
  status.className = isError ? "error" : "";
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

function show(number) {
  const { question, frames } = shown;
  const frame = frames[number];
  const before = number > 0 ? frames[number - 1].cells : frame.cells;
  [...board.children].forEach((span, cell) => {
    const symbol = frame.cells[cell];
    const given = question[cell] === symbol;
    span.textContent = symbol;
    span.style.opacity = given ? 1 : 0.2 + 0.08 * (Number(frame.confidence[cell]) + 1);
    span.classList.toggle("given", given);
    span.classList.toggle("changed", before[cell] !== symbol);
  });
  step.value = number;
  const residual = frame.residual === null ? "not finite" : frame.residual.toExponential(1);
  const at = `Step ${number} of ${frames.length - 1}, residual ${residual}. `;
  const verdict = `${shown.valid ? "Valid" : "Not valid"}, ` +
    `${shown.converged ? "converged" : "not converged"} after ${shown.steps} steps: ${shown.answer}`;
  say(number === frames.length - 1 ? at + verdict : at);
}

function play(number) {
  show(number);
  if (number + 1 < shown.frames.length) timer = setTimeout(play, FRAME_MS, number + 1);
}

async function solve(event) {
  event.preventDefault();
  clearTimeout(timer);
  say("Solving ...");
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
    step.disabled = false;
    play(0);
  } catch (error) {
    say(`The service does not answer: ${error.message}`, true);
  }
}

async function start() {
  try {
    model = await (await fetch("/health")).json();
    makeBoard(model.side, model.units);
    puzzle.rows = Math.min(model.side, 30);
    say(`A model of ${model.task}, ${model.side} x ${model.side}.`);
  } catch (error) {
    say(`The service does not answer: ${error.message}`, true);
  }
}

form.addEventListener("submit", solve);
step.addEventListener("input", () => {
  clearTimeout(timer);
  show(Number(step.value));
});
start();
