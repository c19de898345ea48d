"""The command line of stage fetch_corpus."""

from stages.fetch_corpus import main
from strata.run.door import run
from strata.run.finished import kept

if __name__ == "__main__":
    run(kept(main))
