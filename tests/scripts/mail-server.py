"""A mail server for the tests: takes mails on the loopback interface and prints each as a line of JSON.

Arguments: --cert FILE --key FILE (offer STARTTLS), --tls (speak TLS from the first byte), --auth USER:PASSWORD (wanted before a mail;
over TLS only if there is a certificate). The local part of a recipient says how it is answered: `later...` 451 the first time,
`nobody...` 550, `full...` takes the recipient and refuses the message with 552.
"""

import argparse
import email
import email.policy
import json
import ssl
import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

arguments = argparse.ArgumentParser()
for name in ["cert", "key", "auth"]:
    arguments.add_argument("--" + name)
arguments.add_argument("--tls", action="store_true")
arguments = arguments.parse_args()


def say(**fields):
    print(json.dumps(fields), flush=True)


class Handler:
    def __init__(self):
        self.seen = set()

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("later") and address not in self.seen:
            self.seen.add(address)
            return "451 4.3.0 not just now"
        if address.startswith("nobody"):
            return "550 5.1.1 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if any(to.startswith("full") for to in envelope.rcpt_tos):
            return "552 5.2.2 the mailbox is full"
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        user = session.auth_data.decode() if session.authenticated else None
        say(
            sender=envelope.mail_from,
            recipients=envelope.rcpt_tos,
            tls=session.ssl is not None or arguments.tls,
            user=user,
            headers={name: str(value) for name, value in mail.items()},
            body=mail.get_content(),
        )
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    good = (data.login + b":" + data.password).decode() == arguments.auth
    if not good:
        # A careless server repeats what it got.
        return AuthResult(success=False, handled=False, message="535 5.7.8 not you, " + data.password.decode())
    return AuthResult(success=True, auth_data=data.login)


context = None
if arguments.cert:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(arguments.cert, arguments.key)
settings = {"hostname": "mail.test"}
if arguments.auth:
    settings.update(authenticator=authenticate, auth_required=True, auth_require_tls=bool(arguments.cert) and not arguments.tls)


class Server(Controller):
    def factory(self):
        starttls = None if arguments.tls else context
        return SMTP(self.handler, tls_context=starttls, require_starttls=bool(starttls), **settings)


# The controller of aiosmtpd wants to know its port: any free one, and it is said which.
import socket

free = socket.socket()
free.bind(("127.0.0.1", 0))
port = free.getsockname()[1]
free.close()
server = Server(Handler(), hostname="127.0.0.1", port=port, ssl_context=context if arguments.tls else None)
server.start()
print(f"listening on 127.0.0.1:{port}", flush=True)
threading.Event().wait()
