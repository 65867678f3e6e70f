"""Records what a notifier tells: prints its port, then a line of JSON for each POST, in the order in which they came."""
import http.server
import sys


class Recorder(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sys.stdout.buffer.write(body.replace(b"\n", b" ") + b"\n")
        sys.stdout.buffer.flush()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Recorder)
print(server.server_port, flush=True)
server.serve_forever()
