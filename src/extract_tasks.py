"""The command line of stage extract_tasks."""

from stages.extract_tasks import main
from strata.run.door import run
from strata.run.finished import kept

if __name__ == "__main__":
    run(kept(main))
