//: if declarations
#define NET_INPUTS $inputs$
#define NET_OUTPUTS $outputs$
#define NET_FRACTION $fraction$ /* a number is q / 2^$fraction$ */

typedef $word$ net_word_t;

/* All that lasts from one example to the next: save it, restore it, or roll it back as one. */
typedef struct {
//: if least-squares
    int32_t covariance[$covariance$]; /* of the last layer's inputs, row after row */
    uint32_t guards[2]; /* entries saturated; beginnings anew */
//: end
    uint32_t random[3]; /* states of the generators of rounding, perturbation and memory */
//: if memory
    uint32_t counts[$groups$]; /* examples seen, of each group */
//: end
    net_word_t weights[$learned$]; /* of the layers that learn, row after row, a row's bias last */
//: if memory
    net_word_t kept_t[$capacity$];
    $stored$ kept_x[$kept$];
//: end
} net_state_t;
extern net_state_t net_state;

/* Outputs for one event. */
void net_predict(const net_word_t x[NET_INPUTS], net_word_t y[NET_OUTPUTS]);

//: if classes
/* Learn from one event of class t, 0 to $last_class$, and keep it where there is a memory. */
//: else
/* Learn from one event with the target t / 2^$fraction$, and keep it where there is a memory. */
//: end
void net_learn(const net_word_t x[NET_INPUTS], int32_t t);
//: if memory

/* Offer an event to the memory without learning from it. */
void net_keep(const net_word_t x[NET_INPUTS], int32_t t);
//: end
//: if scales

/* Features as inputs: 1, or 0 and nothing written where one is not finite. */
int net_inputs(const double features[NET_INPUTS], net_word_t x[NET_INPUTS]);
//: if regression
/* A target as net_learn takes it: 1, or 0 and nothing written where it is not finite. */
int net_target(double target, int32_t *t);
/* What is predicted: the mean in the target's unit. */
double net_mean(const net_word_t y[NET_OUTPUTS]);
//: end
//: end
//: end
//: if implementation
net_state_t net_state = {
$state$
};

$tables$
static net_word_t net_values[$values$]; /* inputs, and activations of all layers */
//: if gradient feedback least-squares
static net_word_t net_errors[$errors$]; /* of the layers that learn */
//: end
//: if least-squares
static int32_t net_products[$size$], net_gains[$size$];
//: end

/* v / 2^s rounded down. */
static int64_t net_floor(int64_t v, int s) {
    return v < 0 ? ~(~v >> s) : v >> s;
}

//: if half-up
/* v / 2^s, half up. */
static int64_t net_settle(int64_t v, int s) {
    return net_floor(v + ((int64_t)1 << (s - 1)), s);
}
//: end
//: if nearest-even
/* v / 2^s, ties to even. */
static int64_t net_settle(int64_t v, int s) {
    int64_t q = net_floor(v, s);
    int64_t rest = v - q * ((int64_t)1 << s), half = (int64_t)1 << (s - 1);
    return q + (rest > half || (rest == half && (q & 1)));
}
//: end

static int64_t net_clip(int64_t v, int64_t low, int64_t high) {
    return v < low ? low : v > high ? high : v;
}
//: if stochastic perturbation reservoir recall

/* The next 32 bits of a generator (Marsaglia's xorshift32). */
static uint32_t net_draw(int which) {
    uint32_t x = net_state.random[which];
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    net_state.random[which] = x;
    return x;
}
//: end

/* v / 2^s as what is learned is rounded. */
static int64_t net_learned(int64_t v, int s) {
//: if stochastic
    return net_floor(v + (int64_t)(net_draw(0) >> (32 - s)), s);
//: else
    return net_settle(v, s);
//: end
}

static void net_move(net_word_t *w, int64_t change) {
    *w = (net_word_t)net_clip(*w - change, $low$, $high$);
}
//: if exponential

/* exp(-d / 2^$fraction$) in 1 / 2^14. */
static int64_t net_exp_minus(int64_t d) {
    int64_t y = d * $log2_e$;
    int64_t n = net_floor(y, $places$);
    int64_t x = y - n * ((int64_t)1 << $places$);
    int64_t at = x >> $steps$;
    int64_t rest = x - (at << $steps$);
    int64_t upper = net_powers[at];
    int64_t value = upper - (((upper - net_powers[at + 1]) * rest) >> $steps$);
    return n > 14 ? 0 : n >= 0 ? value >> n : value << -n;
}
//: end
//: if logarithm

/* ln(s / 2^14) in 1 / 2^14, for s >= 1. */
static int64_t net_logarithm(int64_t s) {
    int n = 0;
    while (s >> (n + 1)) {
        n++;
    }
    int64_t scaled = (s - ((int64_t)1 << n)) << 6;
    int64_t at = scaled >> n;
    int64_t rest = scaled - (at << n);
    int64_t lower = net_logarithms[at];
    return lower + (((net_logarithms[at + 1] - lower) * rest) >> n) + (n - 14) * $ln_2$;
}
//: end

/* y = max(low, W x + b), n inputs and m outputs; low is 0 for ReLU. */
static void net_layer(const net_word_t *w, const net_word_t *x, net_word_t *y, int32_t n,
                      int32_t m, int32_t low) {
    for (int32_t k = 0; k < m; k++, w += n + 1) {
        $sum$ sum = w[n] * (($sum$)1 << $fraction$);
        for (int32_t i = 0; i < n; i++) {
            sum += ($sum$)w[i] * x[i];
        }
        y[k] = (net_word_t)net_clip(net_settle(sum, $fraction$), low, $high$);
    }
}

static void net_forward(void) {
$forward$
}
//: if softmax

/* The largest score, and the sum of exp(score - largest) in 1 / 2^14. */
static int64_t net_class_sum(const net_word_t *z, int64_t *top) {
    int64_t total = 0;
    *top = z[0];
    for (int32_t k = 1; k < NET_OUTPUTS; k++) {
        *top = z[k] > *top ? z[k] : *top;
    }
    for (int32_t k = 0; k < NET_OUTPUTS; k++) {
        total += net_exp_minus(*top - z[k]);
    }
    return total;
}
//: end
//: if hinge

/* The wrong class of the largest score, the first of equals; -1 if there is none. */
static int32_t net_rival(const net_word_t *z, int32_t t) {
    int32_t best = -1;
    for (int32_t k = 0; k < NET_OUTPUTS; k++) {
        if (k != t && (best < 0 || z[k] > z[best])) {
            best = k;
        }
    }
    return best;
}
//: end
//: if gradient feedback least-squares

/* The gradient of the loss with respect to the outputs. */
static void net_output_errors(int32_t t) {
    const net_word_t *z = net_values + $z$;
    net_word_t *e = net_errors + $last_errors$;
//: if mean gaussian
    int64_t away = (int64_t)z[0] - t;
    e[0] = (net_word_t)net_clip(away, $low$, $high$);
//: end
//: if gaussian
//: if noise
    const int64_t limit = (int64_t)8 << $fraction$;
    away = net_clip(away, -limit, limit);
    int64_t square = (away * away) >> $fraction$;
    int64_t ratio = (square * net_exp_minus(net_clip(z[1], -limit, limit))) >> 14;
    ratio = ratio < limit ? ratio : limit;
    e[1] = (net_word_t)net_clip(net_floor(((int64_t)1 << $fraction$) - ratio, 1), $low$, $high$);
//: else
    e[1] = 0;
//: end
//: end
//: if softmax
    int64_t top;
    int64_t total = net_class_sum(z, &top);
    for (int32_t k = 0; k < NET_OUTPUTS; k++) {
        int64_t share = net_exp_minus(top - z[k]) << $fraction$;
        share = (share + (total >> 1)) / total;
        e[k] = (net_word_t)(share - (k == t ? (int64_t)1 << $fraction$ : 0));
    }
//: end
//: if squared
    for (int32_t k = 0; k < NET_OUTPUTS; k++) {
        e[k] = (net_word_t)net_clip((int64_t)z[k] - (k == t ? $score$ : 0), $low$, $high$);
    }
//: end
//: if hinge
    const int64_t one = (int64_t)1 << $fraction$;
    int32_t k = net_rival(z, t);
    for (int32_t i = 0; i < NET_OUTPUTS; i++) {
        e[i] = 0;
    }
    if (k >= 0 && z[k] + one > z[t]) {
        e[k] = (net_word_t)one;
        e[t] = (net_word_t)-one;
    }
//: end
}
//: end
//: if perturbation

/* The loss of the outputs, in 1 / 2^$two_fraction$. */
static int64_t net_loss(int32_t t) {
    const net_word_t *z = net_values + $z$;
//: if mean gaussian
    int64_t away = net_clip((int64_t)z[0] - t, $low$, $high$);
    return (away * away) >> 1;
//: end
//: if softmax
    int64_t top;
    int64_t total = net_class_sum(z, &top);
    int64_t ln = net_floor(net_logarithm(total) * ((int64_t)1 << $fraction$), 14);
    return (ln + top - z[t]) * ((int64_t)1 << $fraction$);
//: end
//: if squared
    int64_t total = 0;
    for (int32_t k = 0; k < NET_OUTPUTS; k++) {
        int64_t away = net_clip((int64_t)z[k] - (k == t ? $score$ : 0), $low$, $high$);
        total += away * away;
    }
    return total >> 1;
//: end
//: if hinge
    int32_t k = net_rival(z, t);
    int64_t above = k < 0 ? 0 : z[k] + ((int64_t)1 << $fraction$) - z[t];
    return above > 0 ? above << $fraction$ : 0;
//: end
}

static uint32_t net_bits;
static int net_used;

/* One more sign: 32 of them per draw, least bit first. */
static int net_toss(void) {
    if (net_used == 32) {
        net_bits = net_draw(1);
        net_used = 0;
    }
    return (int)((net_bits >> net_used++) & 1);
}

/* `net_layer` with every weight moved by +-step; of the stated noise (row `still`) none. */
static void net_moved(const net_word_t *w, const net_word_t *x, net_word_t *y, int32_t n,
                      int32_t m, int32_t low, int32_t still, int64_t step) {
    for (int32_t k = 0; k < m; k++, w += n + 1) {
        int64_t sum = 0;
        for (int32_t i = 0; i <= n; i++) {
            int64_t move = net_toss() ? step : -step;
            int64_t one = i < n ? x[i] : (int64_t)1 << $fraction$;
            sum += (w[i] + (k == still ? 0 : move)) * one;
        }
        y[k] = (net_word_t)net_clip(net_settle(sum, $fraction$), low, $high$);
    }
}

static void net_forward_moved(int64_t step) {
$moved$
}

static void net_perturb(net_word_t *w, int32_t n, int32_t m, int32_t still, int64_t slope) {
    for (int32_t k = 0; k < m; k++) {
        for (int32_t i = 0; i <= n; i++, w++) {
            int64_t move = net_toss() ? slope : -slope;
            net_move(w, net_learned(k == still ? 0 : move, 16));
        }
    }
}

/* Two losses, one slope, the same signs drawn three times. */
static void net_step(int32_t t) {
    const uint32_t start = net_state.random[1];
    const int64_t step = $perturbation$, most = (int64_t)1 << 44;
    net_used = 32;
    net_forward_moved(step);
    int64_t slope = net_loss(t);
    net_state.random[1] = start;
    net_used = 32;
    net_forward_moved(-step);
    slope = net_clip(slope - net_loss(t), -most, most);
    slope = slope * ((int64_t)1 << $shrink$) + ((int64_t)1 << $fraction$);
    slope = net_clip(net_floor(slope, $fraction$ + 1), $low$, $high$) * $rate$;
    net_state.random[1] = start;
    net_used = 32;
$perturb$
}
//: end
//: if backward

/* Errors below: relu' (W^T error), from the first `rows` of the outputs above. */
static void net_back(const net_word_t *w, const net_word_t *above, const net_word_t *a,
                     net_word_t *below, int32_t n, int32_t rows) {
    for (int32_t j = 0; j < n; j++) {
        $sum$ sum = 0;
        for (int32_t k = 0; k < rows; k++) {
            sum += ($sum$)w[k * (n + 1) + j] * above[k];
        }
        below[j] =
            (net_word_t)(a[j] > 0 ? net_clip(net_settle(sum, $fraction$), $low$, $high$) : 0);
    }
}
//: end
//: if fed

/* Errors of all hidden units, each by its row of the fixed matrix. */
static void net_feed_back(void) {
    const net_word_t *b = net_feedback, *e = net_errors + $last_errors$;
    for (int32_t j = 0; j < $hidden$; j++, b += $sent$) {
        $sum$ sum = 0;
        for (int32_t k = 0; k < $sent$; k++) {
            sum += ($sum$)b[k] * e[k];
        }
        int64_t error = net_clip(net_settle(sum, $fraction$), $low$, $high$);
        net_errors[j] = (net_word_t)(net_values[NET_INPUTS + j] > 0 ? error : 0);
    }
}
//: end
//: if gradient feedback

/* Every weight less rate x error x input, rounded once. */
static void net_descend(net_word_t *w, const net_word_t *x, const net_word_t *e, int32_t n,
                        int32_t m) {
    for (int32_t k = 0; k < m; k++, w += n + 1) {
        int64_t g = (int64_t)e[k] * $rate$;
        for (int32_t i = 0; i < n; i++) {
            net_move(w + i, net_learned(g * x[i], $fraction$ + 16));
        }
        net_move(w + n, net_learned(g * ((int64_t)1 << $fraction$), $fraction$ + 16));
    }
}

static void net_step(int32_t t) {
    net_forward();
    net_output_errors(t);
$backward$
$descend$
}
//: end
//: if least-squares

/* Recursive least squares in the last layer. */
static void net_least_squares(void) {
    const net_word_t *phi = net_values + $phi$;
    int32_t *cov = net_state.covariance;
    for (int32_t i = 0; i < $size$; i++) {
        int64_t sum = cov[i * $size$ + $features$] * ((int64_t)1 << $fraction$);
        for (int32_t j = 0; j < $features$; j++) {
            sum += (int64_t)cov[i * $size$ + j] * phi[j];
        }
        net_products[i] = (int32_t)net_clip(net_settle(sum, $fraction$), INT32_MIN, INT32_MAX);
    }
    int64_t spread = net_products[$features$] * ((int64_t)1 << $fraction$);
    for (int32_t j = 0; j < $features$; j++) {
        spread += (int64_t)net_products[j] * phi[j];
    }
    spread = net_settle(spread, $fraction$);
    if (spread < 0) { /* rounding has made the covariance indefinite: begin it anew */
        net_state.guards[1] += net_state.guards[1] < INT32_MAX;
        for (int32_t i = 0; i < $size$; i++) {
            for (int32_t j = 0; j < $size$; j++) {
                cov[i * $size$ + j] = i == j ? $start$ : 0;
            }
        }
        return;
    }
    const int64_t total = $forgetting$ + spread;
    for (int32_t i = 0; i < $size$; i++) {
        int64_t u = net_products[i];
        int64_t k = ((u < 0 ? -u : u) << 20) / total;
        net_gains[i] = (int32_t)net_clip(u < 0 ? -k : k, INT32_MIN, INT32_MAX);
    }
    net_word_t *w = net_state.weights;
    const net_word_t *e = net_errors;
    for (int32_t k = 0; k < NET_OUTPUTS; k++, w += $size$) {
//: if gaussian
        if (k == 1) { /* the noise, by gradient */
            int64_t g = (int64_t)e[1] * $rate$;
            for (int32_t i = 0; i < $size$; i++) {
                int64_t x = i < $features$ ? phi[i] : (int64_t)1 << $fraction$;
                net_move(w + i, net_learned(g * x, $fraction$ + 16));
            }
            continue;
        }
//: end
        for (int32_t i = 0; i < $size$; i++) {
            net_move(w + i, net_learned((int64_t)net_gains[i] * e[k], 20));
        }
    }
    /* P <- D (P - k u^T) D; the entry of j > i is still the old one. */
    for (int32_t i = 0; i < $size$; i++) {
//: if forgets
        const int here = cov[i * $size$ + i] < $start$;
//: end
        for (int32_t j = i; j < $size$; j++) {
            int64_t value = cov[i * $size$ + j];
//: if forgets
            const int there = j == i ? here : cov[j * $size$ + j] < $start$;
//: end
            value -= net_settle((int64_t)net_gains[i] * net_products[j], 20);
//: if forgets
            if (here || there) {
                value = net_settle(value * (here && there ? $inverse$ : $inverse_root$), 16);
            }
//: end
            if (value < INT32_MIN || value > INT32_MAX) {
                net_state.guards[0] += net_state.guards[0] < INT32_MAX;
                value = net_clip(value, INT32_MIN, INT32_MAX);
            }
            if (i == j && value < $floor$) {
                value = $floor$;
            }
            cov[i * $size$ + j] = cov[j * $size$ + i] = (int32_t)value;
        }
    }
}

static void net_step(int32_t t) {
    net_forward();
    net_output_errors(t);
    net_least_squares();
}
//: end

void net_predict(const net_word_t x[NET_INPUTS], net_word_t y[NET_OUTPUTS]) {
    for (int32_t i = 0; i < NET_INPUTS; i++) {
        net_values[i] = x[i];
    }
    net_forward();
    for (int32_t k = 0; k < NET_OUTPUTS; k++) {
        y[k] = net_values[$z$ + k];
    }
}
//: if recall

/* Examples of a group in the memory. */
static uint32_t net_held(int32_t g) {
    return net_state.counts[g] < $share$ ? net_state.counts[g] : $share$;
}

/* A kept example, each with the same probability, as inputs; its target. */
static int32_t net_recall(uint32_t held) {
    uint32_t at = (uint32_t)(((uint64_t)net_draw(2) * held) >> 32);
    int32_t g = 0;
    while (at >= net_held(g)) {
        at -= net_held(g++);
    }
    at += (uint32_t)g * $share$;
    for (int32_t i = 0; i < NET_INPUTS; i++) {
        net_values[i] = (net_word_t)(net_state.kept_x[at * NET_INPUTS + (uint32_t)i] * $unit$);
    }
    return net_state.kept_t[at];
}
//: end
//: if memory

void net_keep(const net_word_t x[NET_INPUTS], int32_t t) {
    const int32_t g = $group$;
    const uint32_t seen = net_state.counts[g];
    net_state.counts[g] += seen < INT32_MAX;
    uint32_t at = (uint32_t)g * $share$ + seen % $share$;
//: if reservoir
    if (seen >= $share$) {
        at = (uint32_t)(((uint64_t)net_draw(2) * (seen + 1)) >> 32);
    }
    if (at >= $capacity$) {
        return;
    }
//: end
    for (int32_t i = 0; i < NET_INPUTS; i++) {
//: if shortened
        int64_t value = net_floor(x[i] + $half_unit$, $store_shift$);
//: else
        int64_t value = x[i];
//: end
        value = net_clip(value, $store_low$, $store_high$);
        net_state.kept_x[at * NET_INPUTS + (uint32_t)i] = ($stored$)value;
    }
    net_state.kept_t[at] = (net_word_t)t;
}
//: end

void net_learn(const net_word_t x[NET_INPUTS], int32_t t) {
    for (int32_t i = 0; i < NET_INPUTS; i++) {
        net_values[i] = x[i];
    }
//: if recall
    uint32_t held = 0;
    for (int32_t g = 0; g < $groups$; g++) {
        held += net_held(g);
    }
//: end
    net_step(t);
//: if recall
    for (int32_t turn = 0; held && turn < $replays$; turn++) {
        net_step(net_recall(held));
    }
//: end
//: if memory
    net_keep(x, t);
//: end
}
//: if scales

/* Rounded to the nearest, ties up, and saturated; 0 where it is not finite. */
static int net_number(double scaled, int32_t *q) {
    if (!(scaled - scaled == 0)) {
        return 0;
    }
    scaled = scaled * $one$ + 0.5;
    scaled = scaled < $low$ ? $low$ : scaled > $high$ ? $high$ : scaled;
    *q = (int32_t)scaled;
    *q -= *q > scaled;
    return 1;
}

int net_inputs(const double features[NET_INPUTS], net_word_t x[NET_INPUTS]) {
    static const double scale[NET_INPUTS][2] = { /* mean, deviation */
$scale$
    };
    int32_t q;
    for (int32_t i = 0; i < NET_INPUTS; i++) {
        if (!net_number((features[i] - scale[i][0]) / scale[i][1], &q)) {
            return 0;
        }
    }
    for (int32_t i = 0; i < NET_INPUTS; i++) {
        (void)net_number((features[i] - scale[i][0]) / scale[i][1], &q);
        x[i] = (net_word_t)q;
    }
    return 1;
}
//: if regression

int net_target(double target, int32_t *t) {
    return net_number((target - $target_mean$) / $target_std$, t);
}

double net_mean(const net_word_t y[NET_OUTPUTS]) {
    return y[0] / $one$ * $target_std$ + $target_mean$;
}
//: end
//: end
//: end
