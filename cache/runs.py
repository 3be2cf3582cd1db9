"""Recording how a model is trained, for the methods that follow training.

A plain loop opens a folder and calls `run.step` after every step of the optimiser:

    with runs.record("run", model, optimizer) as run:
        for rows in batches:
            loss(model, rows).backward()
            optimizer.step()
            run.step(train.ids[rows])
            optimizer.zero_grad()

transformers' Trainer, and TRL's trainers, get a callback:

    Trainer(model, args, train_dataset=data, callbacks=[runs.trainer_callback("run")])

A trained model is opened from the folder, and methods take checkpoints, rates, order and second moments from it:

    trained = TrainedModel.from_run("run", model, train, LanguageModelling())
    attrib.TracIn().fit(trained).score(queries)
"""

from .model.recording import record as record
from .model.recording import trainer_callback as trainer_callback
from .model.runs import TrainingRun as TrainingRun
from .model.runs import open_run as open_run
