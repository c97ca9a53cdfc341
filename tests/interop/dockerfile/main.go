// What BuildKit makes of a Dockerfile, without building it: its own checks (`docker build --check`) of every
// stage, and the configuration of the images that two of them make.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/opencontainers/go-digest"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	ctx := context.Background()
	every := options("")
	every.SourceMap = llb.NewSourceMap(nil, path, "Dockerfile", text)
	every.SourceMap.Definition = &llb.Definition{}
	found, err := dockerfile2llb.DockerfileLint(ctx, text, every)
	if err != nil {
		return err
	}
	for _, warning := range found.Warnings {
		err = fmt.Errorf("line %d: %s: %s", warning.Location.Ranges[0].Start.Line, warning.RuleName, warning.Detail)
		fmt.Fprintln(os.Stderr, err)
	}
	if found.Error != nil {
		return fmt.Errorf("%s", found.Error.Message)
	}
	if err != nil {
		return fmt.Errorf("%d warnings", len(found.Warnings))
	}

	if err := image(ctx, text, "", "doorward", "2102:2102", []string{"run"}); err != nil {
		return fmt.Errorf("doorward: %w", err)
	}
	intercept := []string{"intercept", "apply"}
	if err := image(ctx, text, "doorward-intercept", "doorward-intercept", "0:0", intercept); err != nil {
		return fmt.Errorf("doorward-intercept: %w", err)
	}
	return alone(text, "doorward")
}

// image says in which way the image of a stage is not what it should be.
func image(ctx context.Context, text []byte, target, title, user string, command []string) error {
	made, err := dockerfile2llb.Dockerfile2LLB(ctx, text, options(target))
	if err != nil {
		return err
	}
	config := made.Image.Config
	if config.User != user {
		return fmt.Errorf("runs as %q, not %q", config.User, user)
	}
	if entrypoint := []string{"/usr/local/bin/doorward"}; !slices.Equal(config.Entrypoint, entrypoint) {
		return fmt.Errorf("starts %q", config.Entrypoint)
	}
	if !slices.Equal(config.Cmd, command) {
		return fmt.Errorf("does %q", config.Cmd)
	}
	if config.Labels["org.opencontainers.image.title"] != title {
		return fmt.Errorf("is called %q", config.Labels["org.opencontainers.image.title"])
	}
	for _, label := range []string{"description", "licenses", "version", "revision"} {
		if config.Labels["org.opencontainers.image."+label] == "" {
			return fmt.Errorf("has no label %s", label)
		}
	}
	if len(config.ExposedPorts) > 0 || len(config.Volumes) > 0 {
		return fmt.Errorf("has ports or volumes: which ones is up to its configuration")
	}
	fmt.Printf("%s %s as %s: %s\n", title, config.Labels["org.opencontainers.image.version"], user,
		strings.Join(append(config.Entrypoint, config.Cmd...), " "))
	return nil
}

// alone says whether a stage begins with nothing and holds one file.
func alone(text []byte, name string) error {
	parsed, err := parser.Parse(strings.NewReader(string(text)))
	if err != nil {
		return err
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return err
	}
	for _, stage := range stages {
		if stage.Name != name {
			continue
		}
		if stage.BaseName != "scratch" {
			return fmt.Errorf("%s begins with %s", name, stage.BaseName)
		}
		files := 0
		for _, command := range stage.Commands {
			switch command := command.(type) {
			case *instructions.CopyCommand:
				files += len(command.SourcePaths)
			case *instructions.AddCommand, *instructions.RunCommand:
				return fmt.Errorf("%s has more than a file in it: %s", name, command.Name())
			}
		}
		if files != 1 {
			return fmt.Errorf("%s has %d files in it", name, files)
		}
		fmt.Printf("%s holds one file and nothing else\n", name)
		return nil
	}
	return fmt.Errorf("there is no stage %s", name)
}

func options(target string) dockerfile2llb.ConvertOpt {
	return dockerfile2llb.ConvertOpt{
		Config:       dockerui.Config{Target: target},
		MetaResolver: unknown{},
	}
}

// unknown is a registry that says of every image that it is empty: none is asked.
type unknown struct{}

func (unknown) ResolveImageConfig(
	_ context.Context, name string, _ sourceresolver.Opt,
) (string, digest.Digest, []byte, error) {
	if _, err := reference.ParseNormalizedNamed(name); err != nil {
		return "", "", nil, err
	}
	config := []byte(`{"architecture": "amd64", "os": "linux", "config": {}}`)
	return name, digest.FromBytes(config), config, nil
}
