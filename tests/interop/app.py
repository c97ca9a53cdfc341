"""A plain application on the port that the argument names: answers with what it was told of the caller, or
with the text of TOLD if there is nothing. Counts who asked at /seen."""

import http.server
import sys


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise the end of a response waits for the acknowledgement of its beginning.
    disable_nagle_algorithm = True
    wbufsize = -1
    seen = 0

    def answer(self):
        if self.path == "/seen":
            text = str(App.seen)
        else:
            App.seen += 1
            text = self.headers.get("x-forwarded-client-cert", "nobody")
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = text.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


Server(("127.0.0.1", int(sys.argv[1])), App).serve_forever()
