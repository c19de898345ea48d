"""The command line of stage controls."""

from stages.controls import main
from strata.run.door import run
from strata.run.finished import kept

if __name__ == "__main__":
    run(kept(main))
