// The plot of residuals by step, on a logarithmic axis, with the line below which a solve is done.

const [LEFT, RIGHT, TOP, BOTTOM] = [58, 464, 22, 170];
const ticks = (low, high, most) => {
  const every = Math.max(1, Math.ceil((high - low) / most));
  const found = [];
  for (let at = low; at <= high; at += every) found.push(at);
  return found;
};

export class Chart {
  // `onStep` is called with the step that is pointed at.
  constructor(svg, tolerance, onStep) {
    Object.assign(this, { svg, tolerance });
    svg.addEventListener("pointermove", (event) => {
      if (!this.residuals) return;
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const step = Math.round(((x - LEFT) / (RIGHT - LEFT)) * this.last);
      if (event.buttons || event.type === "click") onStep(Math.min(Math.max(step, 0), this.last));
      this.point(Math.min(Math.max(step, 0), this.last));
    });
    svg.addEventListener("pointerdown", (event) => svg.dispatchEvent(new PointerEvent("pointermove", event)));
    svg.addEventListener("pointerleave", () => this.residuals && this.point(this.step));
  }

  add(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    this.svg.append(element);
    return element;
  }

  x(step) {
    return LEFT + ((RIGHT - LEFT) * step) / Math.max(this.last, 1);
  }

  // What is not finite stands on top.
  y(residual) {
    if (residual === null) return TOP;
    const height = (Math.log10(Math.max(residual, 1e-30)) - this.low) / (this.high - this.low);
    return BOTTOM - (BOTTOM - TOP) * Math.min(Math.max(height, 0), 1);
  }

  draw(residuals) {
    this.residuals = residuals;
    this.last = residuals.length - 1;
    const logs = [...residuals, this.tolerance].filter((r) => r > 0).map(Math.log10);
    this.low = Math.floor(Math.min(...logs, -1));
    this.high = Math.ceil(Math.max(...logs, 0));
    this.svg.replaceChildren();
    for (const power of ticks(this.low, this.high, 6)) {
      const y = this.y(10 ** power);
      this.add("line", { x1: LEFT, x2: RIGHT, y1: y, y2: y });
      this.add("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, `1e${power}`);
    }
    for (const step of ticks(0, this.last, 8)) {
      this.add("text", { x: this.x(step), y: BOTTOM + 15, "text-anchor": "middle" }, step);
    }
    this.add("text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 34, "text-anchor": "middle" }, "step");
    const middle = (TOP + BOTTOM) / 2;
    const turned = { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` };
    this.add("text", turned, "relative residual");
    if (this.tolerance !== null) {
      const y = this.y(this.tolerance);
      this.add("line", { class: "tolerance", x1: LEFT, x2: RIGHT, y1: y, y2: y });
      const label = { class: "tolerance-label", x: LEFT + 6, y: y - 5 };
      this.add("text", label, `tolerance ${this.tolerance.toExponential()}`);
    }
    const points = residuals.map((residual, step) => `${this.x(step)},${this.y(residual)}`);
    this.add("polyline", { id: "curve", points: points.join(" ") });
    this.now = this.add("line", { id: "now", y1: TOP, y2: BOTTOM });
    this.dot = this.add("circle", { id: "dot", r: 4 });
    this.value = this.add("text", { id: "value", y: TOP - 8 });
  }

  // Mark the step that the board shows.
  show(step) {
    this.step = step;
    this.now.setAttribute("x1", this.x(step));
    this.now.setAttribute("x2", this.x(step));
    this.point(step);
  }

  // Mark a step and write its residual.
  point(step) {
    const [x, residual] = [this.x(step), this.residuals[step]];
    this.dot.setAttribute("cx", x);
    this.dot.setAttribute("cy", this.y(residual));
    const left = x > (LEFT + RIGHT) / 2;
    this.value.setAttribute("x", left ? x - 8 : x + 8);
    this.value.setAttribute("text-anchor", left ? "end" : "start");
    this.value.textContent = `step ${step}: ${written(residual)}`;
  }
}

export const written = (residual) => (residual === null ? "not finite" : residual.toExponential(1));
