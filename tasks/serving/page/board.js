// The board: cells that are typed into, and that show a moment of a solve.

const FRAME = /[\s|+-]/g; // what surrounds the cells of a pasted drawing

export class Board {
  // `about` is what the service says of its puzzles; `onTyped` is called with the new text of the
  // board, `onLook` with the number of the cell that is looked at, or null.
  constructor(element, about, onTyped, onLook) {
    Object.assign(this, { element, about, onTyped });
    this.size = about.side ** 2;
    this.empty = about.blank ?? " ";
    this.text = this.empty.repeat(this.size);
    element.style.gridTemplate = `repeat(${about.side}, 1fr) / repeat(${about.side}, 1fr)`;
    element.style.fontSize = `${Math.min(1.5, 14 / about.side)}rem`;
    element.replaceChildren(...Array.from({ length: this.size }, (_, cell) => this.makeCell(cell)));
    this.cells = [...element.children];
    this.reach(0, false);
    element.addEventListener("keydown", (event) => this.onKey(event));
    element.addEventListener("beforeinput", (event) => this.onInput(event));
    element.addEventListener("paste", (event) => this.onPaste(event));
    element.addEventListener("pointerover", (event) => onLook(this.numberOf(event.target)));
    element.addEventListener("pointerleave", () => onLook(this.numberOf(document.activeElement)));
    element.addEventListener("focusin", (event) => {
      this.reach(this.numberOf(event.target), false);
      onLook(this.at);
    });
  }

  // A thick line stands between cells that are neighbours but in different boxes.
  makeCell(cell) {
    const { side, units, symbols } = this.about;
    const box = units[2];
    const differs = (one, other) => box !== undefined && box[one] !== box[other];
    const field = document.createElement("input");
    field.tabIndex = -1;
    field.autocomplete = "off";
    field.inputMode = /^\d+$/.test(symbols) ? "numeric" : "text";
    field.setAttribute("aria-label", this.placeOf(cell));
    if ((cell + 1) % side !== 0 && differs(cell, cell + 1)) field.classList.add("right");
    if (cell + side < this.size && differs(cell, cell + side)) field.classList.add("below");
    return field;
  }

  placeOf(cell) {
    return `Row ${Math.floor(cell / this.about.side) + 1}, column ${(cell % this.about.side) + 1}`;
  }

  numberOf(field) {
    const number = this.cells.indexOf(field);
    return number < 0 ? null : number;
  }

  // Make a cell the one that the tab key comes to.
  reach(cell, focus = true) {
    if (this.at !== undefined) this.cells[this.at].tabIndex = -1;
    this.at = cell;
    this.cells[cell].tabIndex = 0;
    if (focus) this.cells[cell].focus();
  }

  onKey(event) {
    const { side } = this.about;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -side, ArrowDown: side };
    const row = this.at - (this.at % side);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) this.reach((this.at + moves[event.key] + this.size) % this.size);
    else if (event.key === "Home") this.reach(row);
    else if (event.key === "End") this.reach(row + side - 1);
    else if (event.key === "Delete") this.type(this.empty, 0);
    else if (event.key === "Backspace") this.type(this.empty, -1);
    else return;
    event.preventDefault();
  }

  // Screen keyboards send no keys, but text that is about to be inserted.
  onInput(event) {
    event.preventDefault();
    if (event.inputType.startsWith("delete")) return this.type(this.empty, -1);
    for (const character of event.data ?? "") this.type(character, 1);
  }

  // Only what the puzzle may have is typed; 0, a point and a space clear a cell that may be blank.
  type(character, move) {
    const { blank, symbols } = this.about;
    const typed = blank !== null && " 0.".includes(character) ? blank : this.symbolOf(character);
    if (typed !== this.empty && !symbols.includes(typed)) return;
    this.text = this.text.slice(0, this.at) + typed + this.text.slice(this.at + 1);
    this.onTyped(this.text);
    this.reach(Math.min(Math.max(this.at + move, 0), this.size - 1));
  }

  // A whole puzzle, wherever it is pasted; the text box takes what does not fit.
  onPaste(event) {
    event.preventDefault();
    const text = event.clipboardData.getData("text");
    const characters = this.understood(text);
    if ([...text.trim()].length === 1) this.type(text.trim(), 1);
    else this.onTyped(this.fits(characters) ? characters : text);
  }

  // The cells of a text, without its line ends and the frame around them.
  understood(text) {
    const { blank } = this.about;
    if (blank === null) return text.replace(/[\r\n]/g, "");
    const cells = text.replace(FRAME, "").replace(/[0.]/g, blank);
    return [...cells].map((character) => this.symbolOf(character)).join("");
  }

  // The symbol that is meant: digits above 9 are capital letters, however they are typed.
  symbolOf(character) {
    return this.about.symbols.includes(character) ? character : character.toUpperCase();
  }

  // Whether they are as many cells as the board has, and none holds what no puzzle may have.
  fits(characters) {
    const known = (symbol) => symbol === this.empty || this.about.symbols.includes(symbol);
    return characters.length === this.size && [...characters].every(known);
  }

  // Show the puzzle alone.
  showQuestion(text) {
    this.text = text;
    this.draw(text, (cell) => text[cell] !== this.empty, null, text, text);
  }

  // Show a moment of a solve: what changed since the one before, and how sure the model is.
  showFrame(question, frame, before) {
    const given = (cell) => question[cell] === frame.cells[cell];
    this.draw(frame.cells, given, frame.confidence, before.cells, question);
  }

  draw(symbols, isGiven, confidence, before, question) {
    const broken = this.broken(symbols, question);
    this.cells.forEach((field, cell) => {
      const symbol = symbols[cell];
      field.value = symbol === this.about.blank ? "" : symbol;
      field.dataset.symbol = symbol;
      const sure = confidence === null || isGiven(cell);
      field.style.setProperty("--sure", sure ? 1 : 0.2 + 0.08 * (Number(confidence[cell]) + 1));
      field.classList.toggle("given", isGiven(cell));
      field.classList.toggle("changed", before[cell] !== symbol);
      field.classList.toggle("broken", broken.has(cell));
      field.setAttribute("aria-invalid", broken.has(cell));
    });
  }

  // Cells whose symbol stands twice in a unit, or is another than the one that was given.
  broken(symbols, question) {
    const { blank, units, all_different: allDifferent } = this.about;
    const found = new Set();
    if (!allDifferent) return found;
    for (const unit of units) {
      const first = new Map();
      unit.forEach((number, cell) => {
        if (symbols[cell] === blank) return;
        const key = `${number} ${symbols[cell]}`;
        if (first.has(key)) found.add(cell).add(first.get(key));
        else first.set(key, cell);
      });
    }
    [...question].forEach((clue, cell) => {
      if (clue !== blank && clue !== symbols[cell]) found.add(cell);
    });
    return found;
  }
}
