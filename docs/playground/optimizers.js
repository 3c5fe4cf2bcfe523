// RMSProp with every setting of rmsfast in double precision, and five other optimizers. Arithmetic only: no page.
//
// RMSProp here has the bits of `rmsfast.reference` in float64: the same operations on doubles, in the same order. The
// other five are the rules of their papers. w: parameters, g: gradients, v, m, b: the averages of g² and of g, and the
// momentum buffer, as Float64Array of equal length.

const SWITCH = { default: false, values: [false, true] };
const limit = (low, above = false) => ({ default: null, low, high: Infinity, above, optional: true });
const number = (value, high = Infinity) => ({ default: value, low: 0, high });

// Each setting with its default and its range, as in rmsfast/settings.py. The formats of 16 and 8 bits are not here.
export const SETTINGS = {
    lr: number(1e-3),
    beta: number(0.9, 1),
    eps: number(1e-8),
    momentum: number(0),
    nesterov: SWITCH,
    centered: SWITCH,
    weight_decay: number(0),
    decoupled_weight_decay: SWITCH,
    eps_inside_sqrt: SWITCH,
    lr_in_momentum: SWITCH,
    bias_correction: SWITCH,
    initial_square_avg: number(0),
    maximize: SWITCH,
    clip_value: limit(0, true),
    clip_norm: limit(0, true),
    clip_global_norm: limit(0, true),
    clip_weights: limit(0, true),
    nonfinite: { default: "propagate", values: ["propagate", "raise", "skip"] },
    ema_decay: { default: null, low: 0, high: 1, optional: true },
};

/** Return one setting in its range, or throw an Error that says what was expected. */
export function readSetting(name, value) {
    if (!Object.hasOwn(SETTINGS, name)) {
        throw new Error(`${name}: no such setting, expected one of ${Object.keys(SETTINGS).join(", ")}`);
    }
    const kind = SETTINGS[name];
    if (kind.values) {
        if (kind.values.includes(value)) return value;
        throw new Error(`${name}: ${value}, expected ${kind.values.join(" or ")}`);
    }
    if (kind.optional && (value === null || value === Infinity)) return null;
    const fits =
        typeof value === "number" && value >= kind.low && value <= kind.high && !(kind.above && value === kind.low);
    if (fits) return value;
    let expected =
        kind.high < Infinity ? `a number from ${kind.low} to ${kind.high}` : `a number ${kind.above ? ">" : "≥"} 0`;
    if (kind.optional) expected += " or none";
    throw new Error(`${name}: ${value}, expected ${expected}`);
}

/** Return all settings, with defaults for those that are not given, or throw an Error. */
export function readSettings(given) {
    const settings = Object.fromEntries(Object.entries(SETTINGS).map(([name, kind]) => [name, kind.default]));
    for (const [name, value] of Object.entries(given)) settings[name] = readSetting(name, value);
    if (settings.nesterov && settings.momentum === 0) {
        throw new Error("nesterov: true with momentum 0, expected momentum > 0, without which nesterov has no effect");
    }
    if (settings.bias_correction && settings.beta === 1) {
        throw new Error("bias_correction: true with beta 1, expected beta < 1: the correction divides by 1 − betaᵗ");
    }
    const clips = ["clip_value", "clip_norm", "clip_global_norm"].filter((name) => settings[name] !== null);
    if (clips.length > 1) throw new Error(`${clips.join(" and ")}: set together, expected one of them at most`);
    return settings;
}

/** RMSProp on one parameter. `step` returns what the step computed, for whoever wants to show it. */
export class RMSProp {
    constructor(w, settings = {}) {
        this.settings = readSettings(settings);
        this.w = Float64Array.from(w);
        this.v = this.w.map(() => this.settings.initial_square_avg);
        this.m = this.settings.centered ? this.w.map(() => 0) : null;
        this.b = this.settings.momentum !== 0 ? this.w.map(() => 0) : null;
        this.a = this.settings.ema_decay !== null ? this.w.slice() : null;
        this.t = 0;
    }

    /** Update w and the state by the gradient g. Returns null for a step that `nonfinite` skips. */
    step(g, gradScale = 1) {
        const s = this.settings;
        const n = this.w.length;
        if (g.length !== n) throw new Error(`g: ${g.length} numbers, expected ${n}`);
        if (s.nonfinite !== "propagate" && !g.every(Number.isFinite)) {
            if (s.nonfinite === "skip") return null;
            throw new Error("g: a number that is not finite, expected finite numbers");
        }
        const before = { w: this.w.slice(), v: this.v.slice(), m: this.m?.slice(), b: this.b?.slice() };
        this.t += 1;
        g = this.change(
            clip(
                Float64Array.from(g, (x) => x * gradScale),
                s,
            ),
        );

        const { lr, beta, eps, momentum: mu } = s;
        const { w, v, m, b, a } = this;
        const fresh = 1 - beta;
        const correction = s.bias_correction ? 1 / (1 - power(beta, this.t)) : 1;
        const shrink = lr * s.weight_decay;
        const variance = new Float64Array(n); // what stands under the root
        const root = new Float64Array(n); // √v + ε, or whatever the settings make of it
        for (let i = 0; i < n; i++) {
            if (s.weight_decay !== 0 && s.decoupled_weight_decay) w[i] = w[i] - shrink * w[i];
            v[i] = beta * v[i] + fresh * (g[i] * g[i]);
            variance[i] = v[i] * correction;
            if (s.centered) {
                m[i] = beta * m[i] + fresh * g[i];
                const mean = m[i] * correction;
                variance[i] = variance[i] - mean * mean;
                if (variance[i] < 0) variance[i] = 0; // rounding makes no NaN, and a NaN stays NaN
            }
            root[i] = s.eps_inside_sqrt ? Math.sqrt(variance[i] + eps) : Math.sqrt(variance[i]) + eps;
            if (mu === 0) {
                w[i] = w[i] - (lr * g[i]) / root[i];
            } else if (s.lr_in_momentum) {
                const quotient = (lr * g[i]) / root[i];
                b[i] = mu * b[i] + quotient;
                w[i] = w[i] - (s.nesterov ? quotient + mu * b[i] : b[i]);
            } else {
                const quotient = g[i] / root[i];
                b[i] = mu * b[i] + quotient;
                w[i] = w[i] - lr * (s.nesterov ? quotient + mu * b[i] : b[i]);
            }
            w[i] = clamp(w[i], s.clip_weights);
            if (a) a[i] = s.ema_decay * a[i] + (1 - s.ema_decay) * w[i];
        }
        const after = { w: w.slice(), v: v.slice(), m: m?.slice(), b: b?.slice() };
        return { t: this.t, g, before, correction, variance, root, after };
    }

    /** Return a scaled gradient clipped by value, negated and with weight decay, as the settings say. */
    change(g) {
        const s = this.settings;
        return g.map((x, i) => {
            x = clamp(x, s.clip_value);
            if (s.maximize) x = -x;
            if (s.weight_decay !== 0 && !s.decoupled_weight_decay) x = x + s.weight_decay * this.w[i];
            return x;
        });
    }
}

/** Return x between −most and most, where most is not null. A NaN stays NaN. */
function clamp(x, most) {
    if (most === null) return x;
    return x > most ? most : x < -most ? -most : x;
}

/** Return a scaled gradient, clipped by its norm. For one parameter, the norm of all gradients is its own. */
function clip(g, s) {
    const most = s.clip_norm ?? s.clip_global_norm;
    if (most === null) return g;
    const size = norm(g);
    const factor = size <= most ? 1 : most / size;
    return g.map((x) => x * factor);
}

/** Return the Euclidean norm of a gradient. */
export function norm(g) {
    const squares = sumOfSquares(g, 1);
    if (squares === Infinity && g.every(Number.isFinite)) return Math.sqrt(sumOfSquares(g, 2 ** -600)) * 2 ** 600;
    return Math.sqrt(squares);
}

/** Return Σ (g·shrink)² in the order of rmsfast: blocks of 1024, in each of them 8 lanes, added first to last. */
function sumOfSquares(g, shrink) {
    let total = 0;
    for (let start = 0; start < g.length; start += 1024) {
        const lanes = new Float64Array(8);
        const end = Math.min(start + 1024, g.length);
        for (let i = start; i < end; i++) {
            const x = g[i] * shrink;
            lanes[(i - start) % 8] += x * x;
        }
        total += lanes.reduce((sum, lane) => sum + lane, 0);
    }
    return total;
}

const powers = new Map();

/**
 * Return βᵗ for 0 ≤ β < 1 and a whole t ≥ 1, rounded correctly; 0 where it is below 2⁻¹⁰⁰⁰.
 *
 * Math.pow is not the same on every browser, and in V8 it is a bit off now and then. Here the digits of β are taken to
 * the power as a whole number, so that only the last step rounds.
 */
export function power(beta, t) {
    const key = `${beta} ${t}`;
    if (!powers.has(key)) {
        if (powers.size > 5000) powers.clear();
        powers.set(key, exactPower(beta, t));
    }
    return powers.get(key);
}

function exactPower(beta, t) {
    if (beta === 0) return 0;
    let digits = beta;
    let exponent = 0; // beta = digits · 2^−exponent
    while (!Number.isInteger(digits)) {
        digits *= 2;
        exponent += 1;
    }
    const whole = BigInt(digits) ** BigInt(t);
    const surplus = BigInt(Math.max(0, whole.toString(2).length - 64));
    const head = whole >> surplus;
    const sticky = head << surplus === whole ? 0n : 1n; // what was cut off must still break a tie
    const scale = Number(surplus) - exponent * t;
    if (scale < -1064) return 0;
    return Number(head | sticky) * 2 ** Math.ceil(scale / 2) * 2 ** Math.floor(scale / 2);
}

// ---- The other five. Each has its rule, its names and its defaults from where it was published ----

/** Gradient descent. */
export class SGD {
    constructor(w, { lr }) {
        Object.assign(this, { w: Float64Array.from(w), lr });
    }

    step(g) {
        this.w.forEach((w, i) => (this.w[i] = w - this.lr * g[i]));
    }
}

/** The heavy ball of Polyak 1964, as PyTorch writes it: b ← μ·b + g; w ← w − η·b. */
export class Momentum {
    constructor(w, { lr, mu = 0.9 }) {
        Object.assign(this, { w: Float64Array.from(w), lr, mu, b: new Float64Array(w.length) });
    }

    step(g) {
        this.w.forEach((w, i) => {
            this.b[i] = this.mu * this.b[i] + g[i];
            this.w[i] = w - this.lr * this.b[i];
        });
    }
}

/** Duchi, Hazan and Singer 2011: the sum of all g² instead of an average. */
export class AdaGrad {
    constructor(w, { lr, eps = 1e-10 }) {
        Object.assign(this, { w: Float64Array.from(w), lr, eps, v: new Float64Array(w.length) });
    }

    step(g) {
        this.w.forEach((w, i) => {
            this.v[i] += g[i] * g[i];
            this.w[i] = w - (this.lr * g[i]) / (Math.sqrt(this.v[i]) + this.eps);
        });
    }
}

/** Zeiler 2012, arXiv 1212.5701: no rate; the average size of the last steps instead. */
export class AdaDelta {
    constructor(w, { eps = 1e-2, rho = 0.9 }) {
        const zeros = () => new Float64Array(w.length);
        Object.assign(this, { w: Float64Array.from(w), eps, rho, v: zeros(), u: zeros() });
    }

    step(g) {
        const { rho, eps, u, v } = this;
        this.w.forEach((w, i) => {
            v[i] = rho * v[i] + (1 - rho) * g[i] * g[i];
            const change = Math.sqrt((u[i] + eps) / (v[i] + eps)) * g[i];
            u[i] = rho * u[i] + (1 - rho) * change * change;
            this.w[i] = w - change;
        });
    }
}

/** Kingma and Ba 2014, arXiv 1412.6980. */
export class Adam {
    constructor(w, { lr, beta1 = 0.9, beta2 = 0.999, eps = 1e-8 }) {
        const zeros = () => new Float64Array(w.length);
        Object.assign(this, { w: Float64Array.from(w), lr, beta1, beta2, eps, m: zeros(), v: zeros(), t: 0 });
    }

    step(g) {
        const { lr, beta1, beta2, eps, m, v } = this;
        this.t += 1;
        this.w.forEach((w, i) => {
            m[i] = beta1 * m[i] + (1 - beta1) * g[i];
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
            const mean = m[i] / (1 - power(beta1, this.t));
            const variance = v[i] / (1 - power(beta2, this.t));
            this.w[i] = w - (lr * mean) / (Math.sqrt(variance) + eps);
        });
    }
}
