"""The command line of stage explain."""

from stages.explain import main
from strata.run.door import run
from strata.run.finished import kept

if __name__ == "__main__":
    run(kept(main))
