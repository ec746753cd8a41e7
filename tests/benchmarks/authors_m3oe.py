"""Times the authors' own M3oE (PyTorch), from a checkout of their repository.

`python authors_m3oe.py CHECKOUT BATCH STEPS THREADS` prints rows/s of their training
loop, input included, after one epoch to warm up.  It needs torch and scikit-learn, as
the project does not: `bench_m3oe.py --authors_dir` starts it with another Python.
"""

import sys
import time
import warnings

import numpy as np

SIZES = {
    "user_id": 6040,
    "movie_id": 3706,
    "gender": 2,
    "age": 0,  # a number
    "occupation": 21,
    "zip": 3439,
    "cate_id": 18,
    "domain_indicator": 3,
}
SHARES = [0.2107, 0.3955, 0.3938]


def main(checkout, batch, steps, threads):
    """Trains on random rows of MovieLens-1M's shapes."""
    warnings.filterwarnings("ignore")
    sys.path.insert(0, checkout)
    import torch
    from MDMTRec.basic.features import DenseFeature, SparseFeature
    from MDMTRec.models.multi_domain import MDMTRec
    from MDMTRec.trainers import CTRTrainer
    from MDMTRec.utils.data import DataGenerator

    torch.set_num_threads(threads)
    rng, rows = np.random.default_rng(0), batch * steps
    columns = [
        rng.integers(0, n, rows) if n else rng.random(rows) for n in SIZES.values()
    ]
    columns[-1] = rng.choice(3, rows, p=SHARES)
    x, y = np.stack(columns, axis=1), rng.integers(0, 2, (rows, 2))
    features = [
        SparseFeature(i, vocab_size=n, embed_dim=16) if n else DenseFeature(i)
        for i, n in enumerate(SIZES.values())
    ]
    features.sort(key=lambda f: isinstance(f, SparseFeature))
    model = MDMTRec(
        features,
        domain_num=3,
        task_num=2,
        fcn_dims=[512, 256, 256, 64],
        expert_num=4,
        exp_d=1,
        exp_t=1,
        bal_d=1,
        bal_t=1,
    )
    few = {"x_val": x[:99], "y_val": y[:99], "x_test": x[:99], "y_test": y[:99]}
    loader = DataGenerator(x, y).generate_dataloader(batch_size=batch, **few)[0]
    trainer = CTRTrainer(
        model,
        optimizer_params={"lr": 1e-2, "weight_decay": 1e-5},
        optimizer_params_darts={"lr": 1e-3, "weight_decay": 1e-5},
        n_epoch=1,
        device="cpu",
    )
    trainer.train_one_epoch(loader, domain_num=3, task_num=2)
    start = time.perf_counter()
    trainer.train_one_epoch(loader, domain_num=3, task_num=2)
    print(rows / (time.perf_counter() - start))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
