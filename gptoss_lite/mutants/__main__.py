"""`python -m gptoss_lite.mutants` prints what each mistake moves."""

from gptoss_lite.mutants import table

if __name__ == "__main__":
    print(table())
