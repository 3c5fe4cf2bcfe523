// The landscapes: loss, gradient, and the same gradient in Python. Arithmetic only: no page.
//
// A landscape is a function of u, which is the point x turned back by the angle. `step` counts from 0: it is the number
// of steps taken so far. Only sums, products and quotients occur, in the order of the Python text, so that both have
// the same bits.

/** Return noise with mean 0 and variance 1 for one step and one coordinate: the sum of four uniform numbers. */
export function noise(step, i) {
    let sum = 0;
    for (let k = 0; k < 4; k++) {
        let x = Math.imul(step * 8 + i * 4 + k + 1, 0x9e3779b1) >>> 0;
        x = Math.imul(x ^ (x >>> 16), 0x85ebca6b) >>> 0;
        x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35) >>> 0;
        sum += (x ^ (x >>> 16)) >>> 0;
    }
    return (sum / 4294967296 - 2) * 1.7320508075688772;
}

/** Return a number that goes from −1 to 1 and back, evenly, once in 80 steps. */
export function wave(step) {
    return Math.abs((step % 80) - 40) / 20 - 1;
}

const PYTHON_NOISE = `def noise(t, i):  # mean 0, variance 1: the sum of four uniform numbers
    total = 0
    for k in range(4):
        x = (t * 8 + i * 4 + k + 1) * 0x9E3779B1 & 0xFFFFFFFF
        x = (x ^ x >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        x = (x ^ x >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        total += x ^ x >> 16
    return (total / 2**32 - 2) * 1.7320508075688772
`;

const PYTHON_WAVE = `def wave(t):  # from -1 to 1 and back, once in 80 steps
    return abs(t % 80 - 40) / 20 - 1
`;

// `view` is the middle of the map and half its height. `minima` are marked. `lr` is RMSProp's rate, and `rates` are the
// others' (for AdaDelta its ε): chosen by hand, so that each does well within `steps` steps from `start`.
export const LANDSCAPES = {
    ravine: {
        title: "Ravine",
        formula: "f(x) = 0.1·x₁² + 2·x₂²",
        text: "One direction is 20 times as steep as the other. A single rate has to serve both.",
        view: { x: -0.6, y: -0.3, half: 3.9 },
        start: [-5, -2],
        lr: 0.4,
        steps: 20,
        rates: { sgd: 0.2, momentum: 0.05, adagrad: 2, adadelta: 0.05, adam: 0.7 },
        loss: ([x, y]) => 0.1 * (x * x) + 2 * (y * y),
        gradient: ([x, y]) => [0.2 * x, 4 * y],
        minima: () => [[0, 0]],
        python: ["0.2 * x", "4 * y"],
    },
    rosenbrock: {
        title: "Rosenbrock",
        formula: "f(x) = (1 − x₁)² + 100·(x₂ − x₁²)²",
        text: "A bent valley: easy to find, hard to follow.",
        view: { x: 0, y: 0.5, half: 2.2 },
        start: [-1.5, 2],
        lr: 0.02,
        steps: 200,
        rates: { sgd: 0.001, momentum: 0.0005, adagrad: 0.5, adadelta: 0.002, adam: 0.2 },
        loss: ([x, y]) => (1 - x) * (1 - x) + 100 * ((y - x * x) * (y - x * x)),
        gradient: ([x, y]) => [-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)],
        minima: () => [[1, 1]],
        python: ["-2 * (1 - x) - 400 * x * (y - x * x)", "200 * (y - x * x)"],
    },
    saddle: {
        title: "Saddle",
        formula: "f(x) = x₁²/2 + (x₂² − 4)²/16",
        text: "On the ridge between two valleys, the slope towards them is nearly 0. Dividing by √v makes it a step.",
        view: { x: -0.5, y: 0, half: 3.6 },
        start: [-4, 0.01],
        lr: 0.15,
        steps: 60,
        rates: { sgd: 0.2, momentum: 0.05, adagrad: 0.7, adadelta: 0.02, adam: 0.2 },
        loss: ([x, y]) => (x * x) / 2 + ((y * y - 4) * (y * y - 4)) / 16,
        gradient: ([x, y]) => [x, (y * (y * y - 4)) / 4],
        minima: () => [
            [0, 2],
            [0, -2],
        ],
        python: ["x", "y * (y * y - 4) / 4"],
    },
    noisy: {
        title: "Noisy bowl",
        formula: "f(x) = 0.1·x₁² + 0.5·x₂², and noise of size 1 in each gradient",
        text: "Each gradient has an error, as with small batches. Near the minimum, only the error is left.",
        view: { x: -0.5, y: -0.2, half: 3.9 },
        start: [-4.5, -2.5],
        lr: 0.2,
        steps: 100,
        rates: { sgd: 0.1, momentum: 0.02, adagrad: 1, adadelta: 0.02, adam: 0.3 },
        loss: ([x, y]) => 0.1 * (x * x) + 0.5 * (y * y),
        gradient: ([x, y], step) => [0.2 * x + noise(step, 0), y + noise(step, 1)],
        minima: () => [[0, 0]],
        python: ["0.2 * x + noise(t, 0)", "y + noise(t, 1)"],
        helper: PYTHON_NOISE,
    },
    moving: {
        title: "Moving valley",
        formula: "f(x) = (x₁ − c₁)²/2 + (x₂ − c₂)²/2, where c goes round",
        text: "The minimum goes round a square, once in 80 steps. What remembers too much falls behind.",
        view: { x: 0, y: 0, half: 4.2 },
        start: [-4.5, -1],
        lr: 0.3,
        steps: 160,
        rates: { sgd: 0.1, momentum: 0.02, adagrad: 1, adadelta: 0.02, adam: 0.3 },
        moves: true,
        loss: ([x, y], step) => {
            const [p, q] = [x - 3 * wave(step), y - 3 * wave(step + 20)];
            return (p * p) / 2 + (q * q) / 2;
        },
        gradient: ([x, y], step) => [x - 3 * wave(step), y - 3 * wave(step + 20)],
        minima: (step) => [[3 * wave(step), 3 * wave(step + 20)]],
        python: ["x - 3 * wave(t)", "y - 3 * wave(t + 20)"],
        helper: PYTHON_WAVE,
    },
};

/** A landscape turned by an angle in degrees, counter-clockwise, about the origin. */
export class Terrain {
    constructor(name, angle = 0) {
        const shape = LANDSCAPES[name];
        const { title, formula, text, view, moves = false } = shape;
        Object.assign(this, { name, angle, shape, title, formula, text, view, moves });
        [this.cos, this.sin] =
            angle % 90
                ? cosSin(angle)
                : [
                      [1, 0],
                      [0, 1],
                      [-1, 0],
                      [0, -1],
                  ][(angle / 90) % 4];
    }

    /** The point x in the landscape's own directions. */
    turnBack([x, y]) {
        return [this.cos * x + this.sin * y, this.cos * y - this.sin * x];
    }

    /** The point u of the landscape's own directions on the map. */
    turn([p, q]) {
        return [this.cos * p - this.sin * q, this.sin * p + this.cos * q];
    }

    loss(x, step) {
        return this.shape.loss(this.turnBack(x), step);
    }

    gradient(x, step) {
        return this.turn(this.shape.gradient(this.turnBack(x), step));
    }

    minima(step) {
        return this.shape.minima(step).map((u) => this.turn(u));
    }

    /** The gradient as a Python function of the array w and the number t of steps taken so far. */
    python() {
        const { python, helper = "" } = this.shape;
        const head = `\n${helper}${helper && "\n\n"}def gradient(w, t):\n`;
        if (!this.angle) return `${head}    x, y = w\n    return np.array([${python.join(", ")}])\n`;
        return (
            `cos, sin = ${this.cos}, ${this.sin}  # ${this.angle} degrees\n\n${head}` +
            "    x, y = cos * w[0] + sin * w[1], cos * w[1] - sin * w[0]\n" +
            `    p, q = ${python.join(", ")}\n` +
            "    return np.array([cos * p - sin * q, sin * p + cos * q])\n"
        );
    }
}

function cosSin(angle) {
    const radians = (angle * Math.PI) / 180;
    return [Math.cos(radians), Math.sin(radians)];
}
