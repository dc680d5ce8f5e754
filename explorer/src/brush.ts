/** Drawing a target: each place that the pointer passes, or that a key marks, becomes a Gaussian. */

import { placeOf, pointAt, REACH } from "./canvas";
import { MOST_POINTS, type State } from "./state";

const STEP = 0.1; // of an arrow key; a tenth of it with Shift
const ARROWS: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, 1],
  ArrowDown: [0, -1],
};

export interface Drawn {
  /** The points have changed. */
  retarget(): void;
  say(text: string): void;
}

/** Add a point, unless one is nearer than the brush is wide; say where there is no room. Returns whether it was added. */
export function addPoint(state: State, point: [number, number], say: (text: string) => void): boolean {
  const [x, y] = point.map((v) => Math.round(100 * Math.min(REACH, Math.max(-REACH, v))) / 100) as [number, number];
  const { drawn, brush } = state;
  if (drawn.some((v, i) => i % 2 === 0 && Math.hypot(v - x, drawn[i + 1]! - y) < brush)) return false;
  if (drawn.length >= 2 * MOST_POINTS) {
    say(`there is room for ${MOST_POINTS} Gaussians; undo some, or take a greater width`);
    return false;
  }
  state.drawn = [...drawn, x, y];
  return true;
}

/** Tie pointer and keys over the pictures to the state's drawn points. */
export function listenToBrush(state: State, box: HTMLElement, act: Drawn): void {
  let down = false;
  let strokes: number[] = []; // how many numbers there were before each stroke
  let cursor: [number, number] = [0, 0];

  const isDrawing = (): boolean => state.target === "drawn";
  const put = (point: [number, number]): void => {
    // What is drawn is the data, which stand at the end of the course.
    if (addPoint(state, point, act.say)) {
      state.time = 1;
      act.retarget();
    }
  };
  const mark = (event: PointerEvent): void => {
    const canvas = (event.target as HTMLElement).closest("canvas");
    if (!down || !isDrawing() || !canvas) return;
    event.preventDefault();
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const point = pointAt(event.clientX - left, event.clientY - top, width, height);
    if (point.every((v) => Math.abs(v) <= REACH)) put(point);
  };
  const begin = (): void => {
    strokes = [...strokes.filter((n) => n < state.drawn.length), state.drawn.length];
  };
  const undo = (): void => {
    const kept = strokes.pop() ?? Math.max(0, state.drawn.length - 2);
    state.drawn = state.drawn.slice(0, kept);
    act.retarget();
  };
  const cross = box.ownerDocument.createElement("span");
  cross.className = "cross";
  const showCursor = (canvas: HTMLCanvasElement): void => {
    const [x, y] = placeOf(...cursor, canvas.clientWidth, canvas.clientHeight);
    [cross.style.left, cross.style.top] = [`${x}px`, `${y}px`];
    canvas.parentElement?.append(cross);
  };

  box.addEventListener("pointerdown", (event) => {
    down = isDrawing() && event.button === 0;
    if (down) begin();
    mark(event);
  });
  box.addEventListener("pointermove", mark);
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => (down = false));
  box.addEventListener("keydown", (event) => {
    const canvas = (event.target as HTMLElement).closest("canvas");
    if (!canvas || !isDrawing()) return;
    const arrow = ARROWS[event.key];
    if (arrow) {
      const step = event.shiftKey ? STEP / 10 : STEP;
      cursor = cursor.map((v, i) => Math.min(REACH, Math.max(-REACH, v + step * arrow[i]!))) as [number, number];
      showCursor(canvas);
    } else if (event.key === "Enter" || event.key === " ") {
      showCursor(canvas);
      begin();
      put(cursor);
    } else if (event.key === "Backspace") undo();
    else return;
    event.preventDefault();
  });
  box.addEventListener("focusout", () => cross.remove());
  document.getElementById("undo")!.addEventListener("click", undo);
  document.getElementById("clear")!.addEventListener("click", () => {
    [state.drawn, strokes] = [[], []];
    act.retarget();
  });
}
