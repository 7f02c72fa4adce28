// Plays the steps of a solve: pause, single steps, a slider and a speed.

const FRAME_MS = 120;
const find = (id) => document.getElementById(id);
const [slider, button, speed] = ["step", "play", "speed"].map(find);

export class Player {
  // `onStep` is called with the number of the step to show.
  constructor(onStep) {
    this.onStep = onStep;
    this.last = 0;
    this.timer = null;
    button.addEventListener("click", () => this.toggle());
    find("back").addEventListener("click", () => this.by(-1));
    find("next").addEventListener("click", () => this.by(1));
    slider.addEventListener("input", () => this.hold(Number(slider.value)));
    document.addEventListener("keydown", (event) => {
      const types = event.target.matches("#board input, textarea, select, #answer");
      if (types || find("player").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "p") this.toggle();
      else if (event.key === ",") this.by(-1);
      else if (event.key === ".") this.by(1);
    });
  }

  // Play a solve of so many steps from its start, and come to rest at the step of the answer.
  load(last, answered) {
    this.last = last;
    this.answered = answered;
    slider.max = last;
    this.play(0);
  }

  play(step) {
    this.show(step);
    if (step < this.last) {
      this.timer = setTimeout(() => this.play(step + 1), FRAME_MS / Number(speed.value));
      button.textContent = "Pause";
    } else this.show(this.answered);
  }

  toggle() {
    if (this.timer !== null) this.hold(this.step);
    else this.play(this.step < this.answered ? this.step : 0);
  }

  by(steps) {
    this.hold(Math.min(Math.max(this.step + steps, 0), this.last));
  }

  // Show a step and stay there.
  hold(step) {
    this.show(step);
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
    button.textContent = "Play";
  }

  show(step) {
    this.stop();
    this.step = step;
    slider.value = step;
    this.onStep(step);
  }
}
