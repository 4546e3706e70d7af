"""Train the frozen track-quality classifier on nominal conditions and write it to the package.

Run from the repository root: `python docs/make_quality.py`. Takes about a minute. Whoever runs it
changes the quality word of every later simulation: that is a new detector, say so in the changelog.
"""

import numpy as np

from stillfit.core.seeds import Seeds
from stillfit.l1t import library, quality
from stillfit.l1t.composition import compose
from stillfit.l1t.conditions import nominal
from stillfit.l1t.detector import simulate

EVENTS = 2500
SEED = 20_26
TRAINING = quality.Training(epochs=12)


def main() -> None:
    conditions = nominal()
    shipped = library.load()
    rng = Seeds(SEED).rng("quality")

    def tracks(split):
        particles = compose(
            shipped,
            n=EVENTS,
            pileup=conditions.pileup,
            z_beam=conditions.z_beam,
            sigma_z=conditions.sigma_z,
            processes=conditions.processes.weights(),
            rng=rng,
            split=split,
        )
        return simulate(particles, conditions, rng)

    weights = quality.train(tracks("train"), TRAINING)
    test = tracks("test")
    score = quality.probability(test, weights)
    genuine = test.is_fake == 0
    ranks = np.argsort(np.argsort(score))
    auc = (ranks[genuine].mean() - (genuine.sum() - 1) / 2) / (~genuine).sum()
    about = {
        "trained_on": f"{EVENTS} events, nominal conditions, train split, seed {SEED}",
        "epochs": TRAINING.epochs,
        "auc_on_test_split": round(float(auc), 4),
    }
    quality.save(weights, quality.FROZEN, about)
    print(about)
    for name, rows in (("genuine", genuine), ("fake", ~genuine)):
        shares = np.bincount(quality.index(score[rows]), minlength=8) / rows.sum()
        print(name, np.round(shares, 3))


if __name__ == "__main__":
    main()
