// The page: what is typed is asked, and what is answered is shown.

import { Board } from "./board.js";
import { Chart, written } from "./chart.js";
import { Player } from "./player.js";

const MOST_CANDIDATES = 1000; // as the service allows in a frame
const STARTS = 8;
const ATTEMPTS = 16;
const find = (id) => document.getElementById(id);
const [puzzle, error] = ["puzzle", "error"].map(find);
let about = null; // what the service says of its model
let board, chart, player;
let shown = null; // the trajectory on the board
let looked = null; // the cell whose candidates are shown
let asking = null; // ends the request that is under way

const percent = (share) => `${(100 * share).toFixed(share === 1 ? 0 : 1)} %`;

function fail(text) {
  error.textContent = text;
  error.hidden = text === "";
  error.scrollIntoView({ block: "nearest" }); // on a phone it stands below the board
}

// Forget the answer, and show the puzzle.
function forget() {
  asking?.abort();
  player.stop();
  shown = null;
  for (const id of ["player", "verdict", "cell", "keys"]) find(id).hidden = true;
  find("hint").hidden = false;
  fail("");
}

// Another puzzle; `text` is whatever was typed or pasted.
function ask(text) {
  forget();
  const cells = board.understood(text);
  const fits = board.fits(cells);
  board.showQuestion(fits ? cells : board.empty.repeat(board.size));
  const rows = cells.match(new RegExp(`.{1,${about.side}}`, "gs")) ?? [];
  puzzle.value = fits ? rows.join("\n") : text;
  if (![0, board.size].includes(cells.length)) fail(`The board has ${board.size} cells, and the text ${cells.length}.`);
}

// The text box stays as it is while somebody types there.
function askText() {
  forget();
  const cells = board.understood(puzzle.value);
  board.showQuestion(board.fits(cells) ? cells : board.empty.repeat(board.size));
}

async function solve(effort) {
  forget();
  const request = (asking = new AbortController());
  for (const id of ["solve", "starts", "search"]) find(id).disabled = true;
  find("hint").hidden = true;
  find("verdict").hidden = false;
  say("Solving ...", "");
  try {
    const candidates = board.size * about.symbols.length <= MOST_CANDIDATES;
    const reply = await fetch("trajectory", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ puzzle: puzzle.value, candidates, ...effort }),
      signal: request.signal,
    });
    const body = await reply.json();
    if (request.signal.aborted) return;
    if (reply.ok) present(body);
    else refuse(body.error);
  } catch (failure) {
    if (failure.name !== "AbortError") refuse(`The service does not answer: ${failure.message}`);
  } finally {
    for (const id of ["solve", "starts"]) find(id).disabled = false;
    find("search").disabled = !about.searches;
  }
}

function refuse(text) {
  forget();
  fail(text);
}

function present(body) {
  shown = body;
  find("player").hidden = find("keys").hidden = false;
  chart.draw(body.frames.map((frame) => frame.residual));
  find("answer").value = body.answer;
  const how = [body.valid ? "Valid" : "Not valid"];
  how.push(`${body.converged ? "converged" : "not converged"} after ${body.steps} steps`);
  if (body.starts > 1) how.push(`${body.agreeing} of ${body.starts} starts agree`);
  if (body.attempts > 0) how.push(`attempt ${body.attempts} with guesses`);
  say(`${how.join(", ")}, in ${body.seconds.toFixed(2)} s.`, trust(body));
  find("status").className = body.valid ? "solved" : "unsolved";
  player.load(body.frames.length - 1, body.answered);
}

function say(status, text) {
  find("status").className = "";
  find("status").textContent = status;
  find("trust").textContent = text;
}

// How sure the answer is: by its residual, as often as held-out puzzles were right that ended there.
function trust(body) {
  const residual = `Residual ${written(body.residual)}`;
  const guessed = body.attempts > 0 ? " of the puzzle with the guessed cells" : "";
  const checked = body.valid ? " It keeps the rules, which is checked." : "";
  const held = about.reliability.filter((one) => body.residual >= one.low && body.residual < one.high)[0];
  if (body.residual === null || held === undefined || guessed) return `${residual}${guessed}.${checked}`;
  const share = percent(held.right / held.puzzles);
  return `${residual}: of ${held.puzzles} held-out ${about.noun}s that ended at such a residual, ` +
    `${held.right} were right (${share}).${checked}`;
}

function showStep(step) {
  const { question, frames } = shown;
  board.showFrame(question, frames[step], frames[Math.max(step - 1, 0)]);
  chart.show(step);
  const residual = written(frames[step].residual);
  const whose = step === shown.answered ? ": the answer" : "";
  find("moment").textContent = `Step ${step} of ${frames.length - 1}, residual ${residual}${whose}`;
  showCandidates();
}

// How likely each symbol of the cell is that is pointed at or in focus, at the step on the board.
function showCandidates() {
  const frame = shown?.frames[player.step];
  find("cell").hidden = looked === null || !frame?.candidates;
  if (find("cell").hidden) return;
  find("where").textContent = `${board.placeOf(looked)}, at step ${player.step}: candidates in %`;
  const digits = 2 * about.symbols.length;
  const numbers = frame.candidates.slice(looked * digits, (looked + 1) * digits).match(/../g);
  const columns = [...about.symbols].map((symbol, place) => {
    const column = document.createElement("div");
    const [share, bar, name] = ["share", "bar", "name"].map((kind) => {
      const part = document.createElement("span");
      part.className = kind;
      return part;
    });
    share.textContent = numbers[place] === "99" ? "\u226599" : Number(numbers[place]);
    bar.style.height = `${Number(numbers[place]) / 25}rem`;
    name.textContent = symbol;
    column.append(share, bar, name);
    return column;
  });
  find("candidates").replaceChildren(...columns);
}

async function copy() {
  find("answer").select();
  try {
    await navigator.clipboard.writeText(find("answer").value);
    find("copy").textContent = "Copied";
  } catch {
    find("copy").textContent = "Press Ctrl+C"; // the answer is selected
  }
  setTimeout(() => (find("copy").textContent = "Copy answer"), 2000);
}

function describe() {
  const { task, side, name, parameters, max_steps: steps } = about;
  find("title").textContent = `${task[0].toUpperCase()}${task.slice(1)} by the Attractor Model \u201c${name}\u201d`;
  find("model").textContent = `A model of ${task}, ${side} × ${side}, with at most ${steps} steps ` +
    `and ${parameters.toLocaleString("en")} parameters.`;
  const facts = { Accuracy: about.card.Scores, "By rating": about.card["By rating"], Reliability: about.card.Calibration };
  for (const [heading, text] of Object.entries(facts)) {
    if (text === undefined) continue;
    const [term, value] = ["dt", "dd"].map((tag) => document.createElement(tag));
    term.textContent = heading;
    value.textContent = text;
    find("card").append(term, value);
  }
  find("typing").textContent = "Type into the board; arrow keys move, backspace clears, and a whole " +
    `${about.noun} can be pasted.`;
  find("red").hidden = !about.all_different;
  find("search").disabled = !about.searches;
  find("pointing").hidden = side ** 2 * about.symbols.length > MOST_CANDIDATES;
  for (const example of about.examples) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = example.name;
    button.addEventListener("click", () => ask(example.puzzle));
    find("examples").append(button);
  }
}

async function start() {
  try {
    about = await (await fetch("about")).json();
    describe();
    puzzle.rows = Math.min(about.side, 30);
    board = new Board(find("board"), about, ask, (cell) => {
      looked = cell;
      showCandidates();
    });
    chart = new Chart(find("chart"), about.tolerance, (step) => player.hold(step));
    player = new Player(showStep);
    find("solve").addEventListener("click", () => solve({}));
    find("starts").addEventListener("click", () => solve({ starts: STARTS }));
    find("search").addEventListener("click", () => solve({ attempts: ATTEMPTS }));
    find("clear").addEventListener("click", () => {
      ask("");
      board.reach(0);
    });
    find("copy").addEventListener("click", copy);
    puzzle.addEventListener("input", askText);
    ask("");
  } catch (failure) {
    fail(`The service does not answer: ${failure.message}`);
  }
}

start();
