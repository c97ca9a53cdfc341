"""nginx: kept HTTP/1.1 connections between the two. It knows no URI in a certificate: it checks the server's DNS name,
and of the client the chain alone."""

import subprocess

from pair import SERVER_NAME, Pair, Site, free_port

NOTE = "HTTP/1.1 between the two; checks the chain and the server's DNS name, not who the client is; no policy, no log"

COMMON = """\
{modules}
daemon off; user root; worker_processes {workers}; worker_rlimit_nofile 20000;
pid {dir}/nginx.{side}.pid; error_log stderr error;
events {{ worker_connections 9000; }}
"""

HTTP = """\
http {{
  access_log off; server_tokens off; tcp_nodelay on;
  keepalive_requests 1000000000; keepalive_time 24h; keepalive_timeout 1h;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  proxy_http_version 1.1; proxy_set_header connection ""; proxy_set_header host $http_host;
  proxy_max_temp_file_size 0; proxy_buffer_size 16k; proxy_buffers 8 16k;
  upstream next {{
    server 127.0.0.1:{to};
    keepalive 256; keepalive_requests 1000000000; keepalive_time 24h; keepalive_timeout 1h;
  }}
  server {{ {listen} {tls} location / {{ proxy_pass {scheme}://next; }} }}
}}
"""

STREAM = """\
stream {{ server {{ {listen} {tls} proxy_timeout 1h; proxy_pass 127.0.0.1:{to}; }} }}
"""

ACCEPT = """
    ssl_protocols TLSv1.3; ssl_certificate {dir}/server.crt; ssl_certificate_key {dir}/server.key;
    ssl_client_certificate {dir}/ca.crt; ssl_verify_client on;
"""

DIAL = """
    proxy_ssl_protocols TLSv1.3; proxy_ssl_certificate {dir}/client.crt; proxy_ssl_certificate_key {dir}/client.key;
    proxy_ssl_trusted_certificate {dir}/ca.crt; proxy_ssl_verify on; proxy_ssl_name {name}; proxy_ssl_server_name on;
"""


def version(_: Site) -> str:
    return subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr.strip().split("/")[-1]


def start(site: Site, protocol: str, workers: int) -> Pair:
    port, h2_port, tls_port = free_port(), free_port(), free_port()
    http = protocol == "http"
    modules = "" if http else "load_module /usr/lib/nginx/modules/ngx_stream_module.so;"
    options = "backlog=4096" + (" reuseport" if workers > 1 else "")
    listen_plain = f"listen 127.0.0.1:{port} {options};"
    if http:
        listen_plain += f" listen 127.0.0.1:{h2_port} http2 {options};"
    settings = {
        "inbound": {
            "listen": f"listen 127.0.0.1:{tls_port} ssl {options};", "tls": ACCEPT.format(dir=site.dir),
            "to": site.app_port, "scheme": "http",
        },
        "outbound": {
            "listen": listen_plain, "to": tls_port, "scheme": "https",
            "tls": DIAL.format(dir=site.dir, name=SERVER_NAME) + ("" if http else "proxy_ssl on;"),
        },
    }
    sides = {}
    for side, setting in settings.items():
        text = COMMON.format(modules=modules, workers=workers, dir=site.dir, side=side)
        text += (HTTP if http else STREAM).format(dir=site.dir, **setting)
        config = site.write(f"nginx.{side}.conf", text)
        sides[side] = site.start(f"nginx.{side}", "nginx", "-e", "stderr", "-c", config)
    site.await_answer(port, *sides.values())
    return Pair("nginx", sides["outbound"], sides["inbound"], port, h2_port, tls_port)
