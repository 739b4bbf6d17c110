"""Entry point of every stage's Ray job: ``python -m tasks.stages <stage> --spec <uri>``."""

from tasks.runtime.stage import main
from tasks.stages.registry import STAGES

if __name__ == "__main__":
    main({name: (stage.spec, stage.run) for name, stage in STAGES.items()})
