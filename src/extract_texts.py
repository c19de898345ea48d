"""The command line of stage extract_texts."""

from stages.extract_texts import main
from strata.run.door import run
from strata.run.finished import kept

if __name__ == "__main__":
    run(kept(main))
