"""Talk to a trained system in a browser, and call it as programs call OpenAI.

    python -m omni.serve --ckpt checkpoints/omni_sft_tiny/omni_final.pt

The page is at http://127.0.0.1:8000/, the API at http://127.0.0.1:8000/v1. Ctrl-C stops the server.
"""

import argparse
import signal

from omni.base.console import command, say
from omni.base.errors import UserError
from omni.chat import OmniModel
from omni.serve.about import about
from omni.serve.decoders import Decoders
from omni.serve.server import LOOPBACK, Server

MIN_TOKEN = 16  # characters


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True,
                        help="omni_final.pt or omni_best.pt of a run, or an exported folder")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen on (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 is any free one")
    parser.add_argument("--token", help="requests must bring it: Authorization: Bearer TOKEN")
    args = parser.parse_args(arguments)
    check(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: temporary files are removed
    decoders = Decoders()  # its processes are forked before there are threads
    try:
        system = OmniModel.load(args.ckpt)
        try:
            server = Server(args.host, args.port, system, about(system, args.ckpt), decoders, args.token)
        except OSError as err:
            raise UserError(f"--host {args.host} --port {args.port}: can't listen there ({err.strerror}); "
                            "choose another port with --port") from None
        host, port = server.server_address[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        say(f"open {address}{f'#token={args.token}' if args.token else ''} (Ctrl-C stops)")
        try:
            server.serve_forever(poll_interval=0.1)
        finally:
            server.close()
    except KeyboardInterrupt:
        say("stopped")
    finally:
        decoders.close()


def check(args: argparse.Namespace) -> None:
    """UserError for an impossible port, and for a server that other machines could reach without a token."""
    if not 0 <= args.port < 65_536:
        raise UserError(f"--port {args.port}: must be 0 to 65535")
    if args.token is not None and (len(args.token) < MIN_TOKEN or not args.token.isascii()
                                   or not args.token.replace("-", "").replace("_", "").isalnum()):
        raise UserError(f"--token: must be at least {MIN_TOKEN} letters, digits, - or _; for example "
                        '--token "$(openssl rand -hex 16)"')
    if args.host.lower() not in LOOPBACK and args.token is None:
        raise UserError(f"--host {args.host}: other machines could reach this server, so it needs --token; "
                        'for example --token "$(openssl rand -hex 16)"')


if __name__ == "__main__":
    command(main)
