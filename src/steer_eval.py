"""The command line of stage steer_eval."""

from stages.steer_eval import main
from strata.run.door import run
from strata.run.finished import kept

if __name__ == "__main__":
    run(kept(main))
