"""`python -m vit_clt`, as launchers of several processes need it."""

from vit_clt.cli import script

if __name__ == "__main__":
    script()
