"""The command line of stage select."""

from stages.select.select import main
from strata.run.door import run

if __name__ == "__main__":
    run(main)
