"""Stand-ins for certbot and lego: they do with a new certificate what the clients do, without an ACME server.

The tests run this file as a script: `acme.py ROOT certbot …`. The next certificate is taken from the folder ROOT/acme/ecdsa or
ROOT/acme/rsa, with its key and the certificate of the authority (`cert.pem`, `key.pem`, `chain.pem`). Folders are those of the
clients, below ROOT.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


def _certbot(root: Path, argv: list[str]) -> None:
    """Store files as certbot's `storage.py` does, and run the hook as its `hooks.py` does: in a shell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["certonly", "reconfigure", "renew"])
    parser.add_argument("--standalone", action="store_true")
    parser.add_argument("--cert-name", required=True)
    parser.add_argument("--key-type", choices=["ecdsa", "rsa"], default="ecdsa")
    parser.add_argument("--deploy-hook")
    parser.add_argument("-d", dest="domains", action="append", default=[])
    options = parser.parse_args(argv)
    folder = root / "etc/letsencrypt"
    renewal = folder / "renewal" / f"{options.cert_name}.conf"
    if options.command == "certonly":
        renewal.parent.mkdir(parents=True, exist_ok=True)
        renewal.write_text(json.dumps({"hook": options.deploy_hook, "domains": options.domains, "key": options.key_type}))
    elif options.command == "reconfigure":
        renewal.write_text(json.dumps(json.loads(renewal.read_text()) | {"hook": options.deploy_hook}))
        return
    saved = json.loads(renewal.read_text())
    live, archive = (folder / kind / options.cert_name for kind in ("live", "archive"))
    for each in (live, archive):
        each.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        each.mkdir(exist_ok=True)
    version = len(list(archive.glob("cert*.pem"))) + 1
    cert, key, chain = _next(root, saved["key"])
    for kind, content in {"cert": cert, "privkey": key, "chain": chain, "fullchain": cert + chain}.items():
        target = archive / f"{kind}{version}.pem"
        target.write_bytes(content)
        target.chmod(0o600 if kind == "privkey" else 0o644)
        link = live / f"{kind}.pem"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../archive/{options.cert_name}/{target.name}")
    if saved["hook"]:
        env = {"RENEWED_LINEAGE": str(live), "RENEWED_DOMAINS": " ".join(saved["domains"])}
        subprocess.run(["/bin/sh", "-c", saved["hook"]], check=True, env=os.environ | env)


def _lego(root: Path, argv: list[str]) -> None:
    """Store files as lego 4 does (`certs_storage.go`), and run the hook as its `hook.go` does: without a shell."""
    parser = argparse.ArgumentParser()
    for option in ("--path", "--email", "--domains"):
        parser.add_argument(option, required=True)
    for flag in ("--accept-tos", "--http"):
        parser.add_argument(flag, action="store_true")
    commands = parser.add_subparsers(required=True)
    for command in ("run", "renew"):
        commands.add_parser(command).add_argument(f"--{command}-hook", dest="hook", required=True)
    options = parser.parse_args(argv)
    folder = Path(options.path) / "certificates"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    cert, key, chain = _next(root, "ecdsa")
    files = {"crt": cert + chain, "issuer.crt": chain, "key": key, "json": b"{}"}
    for suffix, content in files.items():
        path = folder / f"{options.domains}.{suffix}"
        path.write_bytes(content)
        path.chmod(0o600)
    env = {
        "LEGO_ACCOUNT_EMAIL": options.email,
        "LEGO_CERT_DOMAIN": options.domains,
        "LEGO_CERT_PATH": str(folder / f"{options.domains}.crt"),
        "LEGO_CERT_KEY_PATH": str(folder / f"{options.domains}.key"),
    }
    subprocess.run(options.hook.split(), check=True, env=os.environ | env)


def _next(root: Path, key_type: str) -> tuple[bytes, bytes, bytes]:
    cert, key, chain = ((root / "acme" / key_type / f"{name}.pem").read_bytes() for name in ("cert", "key", "chain"))
    return cert, key, chain


if __name__ == "__main__":
    _root, _client, *_argv = sys.argv[1:]
    {"certbot": _certbot, "lego": _lego}[_client](Path(_root), _argv)
