// Shows the OpenAPI document with Swagger UI, which is asked for nothing from elsewhere.
const addresses = new WeakMap();

function address(content) {
  if (!addresses.has(content)) addresses.set(content, URL.createObjectURL(content));
  return addresses.get(content);
}

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  validatorUrl: null,
  tryItOutEnabled: true,
  plugins: [
    // Swagger UI plays sound from the address that it asked: right for GET, but not for POST.
    ({ React }) => ({
      wrapComponents: {
        responseBody: (Body) => (props) => {
          const { content, url } = props;
          const from = content instanceof Blob ? address(content) : url;
          return React.createElement(Body, { ...props, url: from });
        },
      },
    }),
  ],
});
