// What a workload does with the Workload API, by go-spiffe. The argument names a file to make once the
// X.509 stream is watched and an identity may be withdrawn.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var id = spiffeid.RequireFromString("spiffe://example.org/client")

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL go-spiffe:", err)
		os.Exit(1)
	}
}

func step(format string, values ...any) {
	fmt.Printf("ok   go-spiffe: "+format+"\n", values...)
}

func run(ctx context.Context, watching string) error {
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	x509Context, err := client.FetchX509Context(ctx)
	if err != nil {
		return fmt.Errorf("X.509 context: %w", err)
	}
	if err := checkContext(x509Context); err != nil {
		return err
	}
	svid := x509Context.DefaultSVID()
	if svid.Hint != "interop" {
		return fmt.Errorf("the hint is %q", svid.Hint)
	}
	step("X509-SVID, serial %x, verified by the bundle", svid.Certificates[0].SerialNumber)

	if _, err := client.FetchX509Bundles(ctx); err != nil {
		return fmt.Errorf("X.509 bundles: %w", err)
	}
	step("X.509 bundle")

	if err := checkJWT(ctx, client); err != nil {
		return err
	}
	if err := checkTLS(ctx); err != nil {
		return err
	}
	return watch(ctx, client, watching)
}

func checkContext(x509Context *workloadapi.X509Context) error {
	svid := x509Context.DefaultSVID()
	if svid.ID != id {
		return fmt.Errorf("the SPIFFE ID is %v", svid.ID)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, x509Context.Bundles); err != nil {
		return fmt.Errorf("X509-SVID: %w", err)
	}
	return nil
}

func checkJWT(ctx context.Context, client *workloadapi.Client) error {
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "billing"})
	if err != nil {
		return fmt.Errorf("JWT-SVID: %w", err)
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return fmt.Errorf("JWT bundles: %w", err)
	}
	checked, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"billing"})
	if err != nil {
		return fmt.Errorf("JWT-SVID: %w", err)
	}
	if checked.ID != id {
		return fmt.Errorf("the subject is %v", checked.ID)
	}
	step("JWT-SVID, verified by the JWT bundle")

	if _, err := client.ValidateJWTSVID(ctx, svid.Marshal(), "billing"); err != nil {
		return fmt.Errorf("validation by the issuer: %w", err)
	}
	if _, err := client.ValidateJWTSVID(ctx, svid.Marshal(), "somebody-else"); err == nil {
		return errors.New("a JWT-SVID is valid for a stranger")
	}
	step("JWT-SVID validated by the issuer, and refused for another audience")
	return nil
}

// Client and server with one source, over a pipe.
func checkTLS(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	authorize := tlsconfig.AuthorizeID(id)
	here, there := net.Pipe()
	server := tls.Server(there, tlsconfig.MTLSServerConfig(source, source, authorize))
	client := tls.Client(here, tlsconfig.MTLSClientConfig(source, source, authorize))
	served := make(chan error, 1)
	go func() {
		_, err := io.WriteString(server, "hello")
		served <- err
	}()
	word := make([]byte, 5)
	if _, err := io.ReadFull(client, word); err != nil {
		return fmt.Errorf("TLS client: %w", err)
	}
	if err := <-served; err != nil {
		return fmt.Errorf("TLS server: %w", err)
	}
	step("mutual TLS with it")
	return nil
}

// watcher tells what comes over the stream.
type watcher struct {
	contexts chan *workloadapi.X509Context
	failures chan error
}

func (w *watcher) OnX509ContextUpdate(x509Context *workloadapi.X509Context) {
	w.contexts <- x509Context
}

func (w *watcher) OnX509ContextWatchError(err error) {
	w.failures <- err
}

func watch(ctx context.Context, client *workloadapi.Client, watching string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &watcher{make(chan *workloadapi.X509Context, 64), make(chan error, 64)}
	go func() { _ = client.WatchX509Context(ctx, w) }()

	serials := map[string]bool{}
	for len(serials) < 3 {
		select {
		case x509Context := <-w.contexts:
			if err := checkContext(x509Context); err != nil {
				return err
			}
			serials[x509Context.DefaultSVID().Certificates[0].SerialNumber.String()] = true
		case err := <-w.failures:
			return fmt.Errorf("the stream failed: %w", err)
		case <-ctx.Done():
			return errors.New("no rotation came")
		}
	}
	step("two rotations seen on the stream")

	if err := os.WriteFile(watching, nil, 0o600); err != nil {
		return err
	}
	for {
		select {
		case <-w.contexts:
		case err := <-w.failures:
			if status.Code(err) != codes.PermissionDenied {
				return fmt.Errorf("not withdrawn but: %w", err)
			}
			step("withdrawn on the open stream")
			return nil
		case <-ctx.Done():
			return errors.New("nothing was withdrawn")
		}
	}
}
